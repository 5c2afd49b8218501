// The trainer's log: one axis of optimiser steps, all rounds in a row.
(() => {
  const {number, colour, tip, frame, col} = selfkd;
  const REWARD = "var(--reward)";
  const round = col("round", "round");

  // Those of the borders between rounds whose labels do not run into each other.
  const apart = (borders, width, last) => {
    const gap = (64 * last) / Math.max(1, width - 70);
    let end = -Infinity;
    return borders.filter((b) => b.at >= end && (end = b.at + gap));
  };

  // The steps that have any of `keys`, counted over all rounds, and where the rounds begin.
  const inRow = (shapes, keys) => {
    const [rows, borders] = [[], []];
    let before = 0;
    for (const s of shapes) {
      const log = s.log.filter((l) => keys.some((k) => l[k.key] !== undefined));
      if (!log.length) continue;
      borders.push({at: before + 1, round: s.round});
      rows.push(
        ...log.map((l, i) => ({
          round: s.round,
          step: l.step ?? i + 1,
          at: before + (l.step ?? i + 1),
          ...Object.fromEntries(keys.map((k) => [k.key, l[k.key] ?? null])),
        })),
      );
      before += Math.max(...s.log.map((l, i) => l.step ?? i + 1));
    }
    return {rows, borders, last: before};
  };

  const training = (shapes, keys, id, title, hint) => {
    const {rows, borders, last} = inRow(shapes, keys);
    return {
      id,
      title,
      hint,
      rows,
      legend:
        keys.length > 1
          ? keys.map((k) => ({...k, shape: k.dash ? "dashed" : "line"}))
          : null,
      columns: [round, col("step", "optimiser step"), ...keys.map((k) => col(k.key, k.label))],
      draw: (w, h) =>
        frame(
          w,
          h,
          {
            label: "optimiser steps of all rounds",
            labelArrow: "right",
            ticks: Math.max(3, Math.round(w / 90)),
            tickFormat: "d",
          },
          {label: null, ticks: 5, nice: true, zero: true},
          [
            Plot.ruleX(borders, {x: "at", stroke: "var(--line)", strokeDasharray: "2 3"}),
            Plot.ruleY([0], {stroke: "var(--line)"}),
            Plot.text(apart(borders, w, last), {
              x: "at",
              frameAnchor: "top",
              dy: -12,
              dx: 2,
              textAnchor: "start",
              text: (b) => `round ${b.round}`,
              fill: "var(--muted)",
            }),
            ...keys.map((k) =>
              Plot.line(rows, {
                x: "at",
                y: k.key,
                z: "round",
                stroke: k.color,
                strokeDasharray: k.dash,
                strokeWidth: 1.7,
              }),
            ),
            ...(rows.length < 200
              ? keys.map((k) => Plot.dot(rows, {x: "at", y: k.key, fill: k.color, r: 2}))
              : []),
            tip(rows, "at", keys[0].key, (r) =>
              [
                `round ${r.round}, step ${r.step}`,
                ...keys.map((k) => `${k.label}: ${number(r[k.key])}`),
              ].join("\n"),
            ),
          ],
        ),
    };
  };

  const one = (key, label) => [{key, label, color: REWARD}];

  // Loss and gradient of every training; what a preference training has besides where there is one.
  selfkd.trainings = (shapes) => {
    const shifts = [
      {key: "chosen_shift", label: "preferred", color: colour(2)},
      {key: "rejected_shift", label: "rejected", color: colour(1), dash: "6 4"},
    ];
    const preference = [
      training(
        shapes,
        one("margin", "margin"),
        "margin",
        "Preference margin",
        "How much likelier than at the start the preferred completion became, less the same of the rejected one, times beta. Above 0 the preference is learnt; a margin that keeps growing is learnt by heart.",
      ),
      training(
        shapes,
        shifts,
        "shifts",
        "Likelihood of what is preferred",
        "Change of the log-probability of whole completions since the start of the training, in nats. The rejected side should fall. Where the preferred side falls too, the model unlearns what it should write: a term that keeps it likely (alpha) or a lower learning rate helps.",
      ),
    ];
    return [
      training(
        shapes,
        one("loss", "loss"),
        "loss",
        "Loss",
        "The trainer's loss at each optimiser step. It may start lower each round, since the model has seen its own words; near 0 it learns by heart, and a jump is a bad batch or too high a learning rate.",
      ),
      training(
        shapes,
        one("grad_norm", "gradient norm"),
        "gradient",
        "Gradient norm",
        "Before clipping. Spikes are steps that moved the model far: look at the examples of that round.",
      ),
      ...preference.filter((figure) => figure.rows.length),
    ];
  };
})();
