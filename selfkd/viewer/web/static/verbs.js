// Figures about what each verb did: samples kept and dropped, verdicts, time.
(() => {
  const {
    number,
    share,
    colour,
    byRound,
    line,
    tip,
    stack,
    has,
    col,
    percent,
    reasonColour,
  } = selfkd;
  const KEPT = "var(--kept)";
  const round = col("round", "round");

  const funnel = (run) => {
    const made = has(run.rounds, "samples", "kept").filter((r) => r.samples || r.kept !== null);
    const reasons = [...new Set(made.flatMap((r) => Object.keys(r.dropped || {})))];
    const rows = made.map((r) => {
      const dropped = selfkd.sum(Object.values(r.dropped || {}));
      const more = selfkd.sum(Object.values(r.extra || {}).map((e) => e.samples));
      return {
        round: r.round,
        generated: (r.samples || 0) + more,
        scored: r.scored,
        kept: r.kept,
        ...Object.fromEntries(reasons.map((d) => [`dropped: ${d}`, (r.dropped || {})[d] || 0])),
        undecided: Math.max(0, (r.samples || 0) + more - (r.kept || 0) - dropped),
      };
    });
    const parts = [
      {key: "kept", label: "kept", color: KEPT},
      ...reasons.map((d, i) => ({
        key: `dropped: ${d}`,
        label: `dropped: ${d}`,
        color: reasonColour(i),
      })),
    ];
    if (rows.some((r) => r.undecided))
      parts.push({key: "undecided", label: "not decided on", color: "var(--line)"});
    return {
      id: "funnel",
      title: "What became of the samples",
      rows,
      hint: "A bar is what a round generated, split into what was kept for training and why the rest was dropped. Next to nothing kept teaches nothing; nearly all kept means that the judge hardly chooses. The last round is only measured.",
      legend: parts.map((p) => ({...p, shape: "box"})),
      columns: [
        round,
        col("generated"),
        col("scored"),
        col("kept"),
        ...reasons.map((d) => col(`dropped: ${d}`)),
        col("undecided", "not decided on"),
      ],
      draw: (w, h) => stack(rows, parts, w, h, "samples"),
    };
  };

  const shares = (id, title, hint, run, keys, more = {}) => {
    const rows = has(run.rounds, ...keys.map((k) => k.key)).map((r) => ({
      round: r.round,
      ...Object.fromEntries(keys.map((k) => [k.key, r[k.key]])),
    }));
    const shown = more.format || percent;
    return {
      id,
      title,
      hint,
      rows,
      legend: keys.map((k) => ({
        label: k.label,
        color: k.color,
        shape: k.dash ? "dashed" : "line",
        symbol: k.symbol || "circle",
      })),
      columns: [round, ...keys.map((k) => col(k.key, k.label))],
      draw: (w, h) =>
        byRound(
          rows,
          w,
          h,
          {
            label: more.label || "share",
            tickFormat: shown,
            ...(more.free
              ? {
                  domain: [
                    0,
                    Math.max(...rows.flatMap((r) => keys.map((k) => r[k.key] || 0))) * 1.08,
                  ],
                }
              : {domain: [0, 1]}),
          },
          [
            ...keys.flatMap((k) => line(rows, k.key, k.color, {symbol: k.symbol, dash: k.dash})),
            tip(
              rows,
              "round",
              (r) => r[keys.find((k) => r[k.key] !== null).key],
              (r) =>
                [
                  `round ${r.round}`,
                  ...keys.map(
                    (k) => `${k.label}: ${more.free ? number(r[k.key]) : share(r[k.key])}`,
                  ),
                ].join("\n"),
            ),
          ],
        ),
    };
  };

  const health = (run) => {
    const judged = has(run.rounds, "scored").filter((r) => r.scored + r.unscored);
    const statuses = [...new Set(judged.flatMap((r) => Object.keys(r.unscored_by || {})))];
    const rows = judged.map((r) => {
      const all = r.scored + r.unscored;
      return {
        round: r.round,
        scored: r.scored / all,
        ...Object.fromEntries(statuses.map((s) => [s, ((r.unscored_by || {})[s] || 0) / all])),
        samples: all,
      };
    });
    const parts = [
      {key: "scored", label: "scored", color: KEPT},
      ...statuses.map((s, i) => ({key: s, label: `no reward: ${s}`, color: reasonColour(i)})),
    ];
    return {
      id: "health",
      title: "Judge health",
      rows,
      hint: "The share of samples that the judge gave a reward. What it could not score counts nowhere as 0, so a judge that fails on the hard samples makes the mean look better than it is: above 5 % find out why.",
      legend: parts.map((p) => ({...p, shape: "box"})),
      columns: [
        round,
        col("samples", "judged"),
        ...parts.map((p) => col(p.key, p.label, {show: share})),
      ],
      draw: (w, h) => stack(rows, parts, w, h, "share of samples", percent),
    };
  };

  const seconds = (run) => {
    const parts = ["generate", "judge", "train", "evaluate"].map((verb, i) => ({
      key: verb,
      label: verb,
      color: colour(i),
    }));
    const rows = run.rounds
      .filter((r) => parts.some((p) => r.seconds[p.key] !== null))
      .map((r) => ({
        round: r.round,
        ...Object.fromEntries(parts.map((p) => [p.key, r.seconds[p.key]])),
      }));
    return {
      id: "seconds",
      title: "Where the time goes",
      rows,
      hint: "Wall-clock seconds of each verb. Judging runs beside generation, so it counts without the waiting; evaluate is all held-out work.",
      legend: parts.map((p) => ({...p, shape: "box"})),
      columns: [round, ...parts.map((p) => col(p.key, `${p.key}, s`))],
      draw: (w, h) => stack(rows, parts, w, h, "seconds"),
    };
  };

  const speed = (shapes) => {
    const rows = shapes.map((s) => {
      const of = (verb, heldout) => {
        const mine = s.steps.filter(
          (t) => t.verb === verb && t.tokens && t.seconds && (t.label === "heldout") === heldout,
        );
        const time = selfkd.sum(mine.map((t) => t.seconds));
        return time ? selfkd.sum(mine.map((t) => t.tokens)) / time : null;
      };
      return {
        round: s.round,
        generate: of("generate", false),
        evaluate: of("generate", true),
        train: of("train", false),
      };
    });
    const keys = [
      {key: "generate", label: "generate", color: colour(0)},
      {key: "train", label: "train", color: colour(2), symbol: "square"},
      {key: "evaluate", label: "evaluate", color: colour(3), symbol: "triangle", dash: "6 4"},
    ];
    return shares(
      "speed",
      "Tokens a second",
      "Tokens sampled or trained on, over the seconds of the step. Short completions lower it: an engine is slowest while it starts and while the last few finish.",
      {rounds: rows},
      keys,
      {free: true, label: "tokens/s", format: (v) => number(v, 0)},
    );
  };

  Object.assign(selfkd, {funnel, shares, health, seconds, speed});
})();
