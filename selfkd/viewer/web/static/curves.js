// The few kinds of drawing that all figures are made of.
(() => {
  const GRID = {stroke: "var(--grid)", strokeOpacity: 1};

  selfkd.colour = (i) => `var(--c${i % 8})`;
  // A second and a third line of a figure, told apart from the first without colour.
  selfkd.second = {dash: "6 4", symbol: "square"};
  selfkd.third = {dash: "2 4", symbol: "triangle"};

  // Whole rounds, as many as fit.
  const ticks = (rounds, width) => {
    const [low, high] = [Math.min(...rounds), Math.max(...rounds)];
    const step =
      [1, 2, 5, 10, 20, 50, 100, 500].find(
        (s) => (high - low) / s <= Math.max(2, (width - 80) / 44),
      ) || 1000;
    return Array.from({length: Math.floor((high - low) / step) + 1}, (_, i) => low + i * step);
  };

  // Margins are for text, which is larger on very large screens.
  const em = () => parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;

  const frame = (width, height, x, y, marks, {marginRight = 18, ...more} = {}) =>
    Plot.plot({
      width,
      height,
      className: "plot",
      marginLeft: 46 * em(),
      marginRight: marginRight * em(),
      marginBottom: 38 * em(),
      marginTop: 22 * em(),
      style: {fontSize: "0.75rem", background: "transparent", overflow: "visible"},
      x,
      y: {grid: false, ...y},
      marks: [y.axis === null ? null : Plot.gridY({...GRID, ticks: y.ticks}), ...marks],
      ...more,
    });

  selfkd.byRound = (rows, width, height, y, marks, more) => {
    const rounds = rows.map((r) => r.round);
    const [low, high] = [Math.min(...rounds), Math.max(...rounds)];
    const x = {
      label: "round",
      labelAnchor: "right",
      labelArrow: "right",
      ticks: ticks(rounds, width),
      tickFormat: "d",
      domain:
        low === high
          ? [low - 0.5, high + 0.5]
          : [low - (high - low) * 0.02, high + (high - low) * 0.02],
    };
    return frame(width, height, x, {ticks: 5, nice: true, ...y}, marks, more);
  };

  selfkd.frame = frame;

  const known = (rows, key) => rows.filter((r) => r[key] !== null && r[key] !== undefined);

  // A line with a dot at each round; nulls break it.
  selfkd.line = (rows, key, color, {symbol = "circle", dash, width = 2} = {}) => [
    Plot.lineY(rows, {
      x: "round",
      y: key,
      stroke: color,
      strokeWidth: width,
      strokeDasharray: dash,
      defined: (d) => d[key] !== null && d[key] !== undefined,
    }),
    Plot.dot(known(rows, key), {
      x: "round",
      y: key,
      fill: color,
      symbol,
      r: rows.length > 30 ? 2 : 3.5,
    }),
  ];

  // What the pointer is nearest to, in words.
  selfkd.tip = (rows, x, y, title) =>
    Plot.tip(
      rows,
      Plot.pointer({
        x,
        y,
        title,
        fill: "var(--panel)",
        stroke: "var(--line)",
        textPadding: 8,
        maxRadius: 60,
      }),
    );

  // Labels at the right end of lines, pushed apart where they would overlap.
  selfkd.ends = (entries, height, domain) => {
    const scale = (height - 60 * em()) / (domain[1] - domain[0] || 1);
    const gap = (13 * em()) / scale;
    const placed = entries.slice().sort((a, b) => a.y - b.y);
    placed.forEach((e, i) => {
      e.at = i ? Math.max(e.y, placed[i - 1].at + gap) : e.y;
    });
    const over = placed.length ? placed[placed.length - 1].at - domain[1] : 0;
    if (over > 0)
      for (
        let i = placed.length - 1, top = domain[1];
        i >= 0 && placed[i].at > top;
        i--, top -= gap
      )
        placed[i].at = top;
    return Plot.text(placed, {
      x: "x",
      y: "at",
      text: "label",
      fill: (d) => d.color,
      dx: 8,
      textAnchor: "start",
      fontWeight: 600,
    });
  };

  // Stacked bars, one a round; `parts`: [{key, label, color}].
  selfkd.stack = (rows, parts, width, height, label, format) => {
    const rounds = rows.map((r) => r.round);
    const long = rows.flatMap((r) =>
      parts.map((p) => ({round: r.round, part: p.label, value: r[p.key] || 0, color: p.color})),
    );
    const shown = new Set(ticks(rounds, width));
    const order = parts.map((p) => p.label);
    return frame(
      width,
      height,
      {
        label: "round",
        type: "band",
        labelAnchor: "right",
        labelArrow: "right",
        padding: 0.25,
        tickFormat: (r) => (shown.has(r) ? String(r) : ""),
      },
      {label, ticks: 5, tickFormat: format},
      [
        Plot.barY(long, {
          x: "round",
          y: "value",
          fill: "color",
          order: (d) => order.indexOf(d.part),
          stroke: "var(--panel)",
          strokeWidth: 0.5,
        }),
        Plot.ruleY([0], {stroke: "var(--line)"}),
        Plot.tip(
          rows,
          Plot.pointerX({
            x: "round",
            y: (r) => selfkd.sum(parts.map((p) => r[p.key])),
            title: (r) =>
              [
                `round ${r.round}`,
                ...parts
                  .filter((p) => r[p.key])
                  .map((p) => `${p.label}: ${format ? format(r[p.key]) : selfkd.number(r[p.key])}`),
              ].join("\n"),
            fill: "var(--panel)",
            stroke: "var(--line)",
          }),
        ),
      ],
      {color: {type: "identity"}},
    );
  };

  // At most `most` of a list, evenly spaced, the first and the last among them.
  selfkd.some = (list, most) =>
    list.length <= most
      ? list
      : Array.from(
          {length: most},
          (_, i) => list[Math.round((i * (list.length - 1)) / (most - 1))],
        );

  selfkd.has = (rows, ...keys) =>
    rows.filter((r) => keys.some((k) => r[k] !== null && r[k] !== undefined));

  selfkd.col = (key, title, more) => ({key, title, ...more});

  selfkd.percent = (v) => `${Math.round(100 * v)} %`;

  selfkd.reasonColour = (i) => selfkd.colour([1, 3, 4, 5, 0, 6, 7][i % 7]); // nothing near the green of kept
})();
