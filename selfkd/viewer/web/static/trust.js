// Figures about whether the judge can be believed: drift, controls, agreement with gold, its taste
// for length. Each is there only where the run recorded what it shows.
(() => {
  const {number, share, colour, second, third, byRound, line, tip, has, col, shares} = selfkd;
  const REWARD = "var(--reward)";
  const GOLD = "var(--gold)";
  const round = col("round", "round");

  const drift = (run) => {
    const rows = has(run.rounds, "anchors").map((r) => ({round: r.round, ...r.anchors}));
    if (!rows.length) return [];
    const keys = [
      {key: "reward_mean", label: "as judged in this round", color: REWARD},
      {key: "reward_first", label: "as judged in the first round", color: GOLD, ...second},
    ];
    const all = rows.flatMap((r) => [r.reward_mean, r.reward_first, 0]);
    return [
      {
        id: "drift",
        title: "Judge drift",
        hint: "Mean reward of the same samples of the first round, judged again in each later one. The lines should lie on each other: where they part, the judge has changed, and rewards of different rounds do not compare. Bars are two standard errors of the difference.",
        rows,
        legend: keys.map((k) => ({
          ...k,
          shape: k.dash ? "dashed" : "line",
          symbol: k.symbol || "circle",
        })),
        columns: [
          round,
          col("samples", "samples"),
          col("reward_mean", "reward now"),
          col("reward_first", "reward at first"),
          col("shift", "mean difference", {show: selfkd.signed}),
          col("stderr", "its standard error"),
          col("spread", "spread of the first rewards"),
        ],
        draw: (w, h) =>
          byRound(
            rows,
            w,
            h,
            {label: "mean reward", domain: [Math.min(...all), Math.max(...all, 0.01) * 1.1]},
            [
              Plot.ruleX(
                rows.filter((r) => r.stderr),
                {
                  x: "round",
                  y1: (r) => r.reward_mean - 2 * r.stderr,
                  y2: (r) => r.reward_mean + 2 * r.stderr,
                  stroke: REWARD,
                  strokeOpacity: 0.6,
                  strokeWidth: 1.5,
                },
              ),
              ...keys.flatMap((k) => line(rows, k.key, k.color, {symbol: k.symbol, dash: k.dash})),
              tip(rows, "round", "reward_mean", (r) =>
                [
                  `round ${r.round}, ${number(r.samples)} samples`,
                  `now ${number(r.reward_mean)}, at first ${number(r.reward_first)}`,
                  `difference ${selfkd.signed(r.shift)}${r.stderr ? ` ± ${number(r.stderr)}` : ""}`,
                ].join("\n"),
              ),
            ],
          ),
      },
    ];
  };

  const MARKS = ["circle", "square", "triangle", "diamond", "star", "wye", "cross"];

  const controls = (run) => {
    const found = has(run.rounds, "controls");
    const kinds = [...new Set(found.flatMap((r) => Object.keys(r.controls)))];
    if (!kinds.length) return [];
    const rows = found.map((r) => ({
      round: r.round,
      ...Object.fromEntries(
        kinds.flatMap((k) => {
          const c = r.controls[k] || {};
          return [
            [k, c.count ? c.failed / c.count : null],
            [`${k}: reward`, c.reward_mean ?? null],
          ];
        }),
      ),
    }));
    const keys = kinds.map((k, i) => ({
      key: k,
      label: k.replaceAll("_", " "),
      color: colour(i),
      symbol: MARKS[i % MARKS.length],
    }));
    return [
      {
        ...shares(
          "controls",
          "Planted controls",
          "Completions of known worth that the judge is shown without being told: the share of each kind that it got wrong. It should stay near 0; a judge that fails them pays for what is worth nothing.",
          {rounds: rows},
          keys,
          {label: "share failed"},
        ),
        rows,
        columns: [
          round,
          ...kinds.flatMap((k) => [
            col(k, `${k.replaceAll("_", " ")}: failed`, {show: share}),
            col(`${k}: reward`, "mean reward"),
          ]),
        ],
      },
    ];
  };

  const agreement = (run) => {
    const rows = has(run.rounds, "agreement").map((r) => ({round: r.round, ...r.agreement}));
    if (!rows.length) return [];
    const keys = [
      {key: "auc", label: "right answers ranked above wrong ones (AUC)", color: colour(0)},
      {key: "pair_accuracy", label: "the same, within a prompt", color: colour(2), ...second},
      {
        key: "calibration",
        label: "calibration error",
        color: colour(4),
        dash: "8 3 2 3",
        symbol: "diamond",
      },
      {key: "coverage", label: "samples that both scored", color: colour(6), ...third},
    ].filter((k) => rows.some((r) => r[k.key] != null));
    return [
      {
        ...shares(
          "agreement",
          "The judge against gold",
          "How often the judge prefers what gold prefers, on the same samples; 50 % is chance. When it falls towards that, later rounds learn noise, whatever the reward does. The calibration error is how far rewards are from the share of right answers among those that got them: near 0 a reward of 0.7 means right 7 times in 10.",
          {rounds: rows},
          keys,
        ),
        rows,
        columns: [
          round,
          ...keys.map((k) => col(k.key, k.label, {show: share})),
          col("samples", "samples"),
          col("pairs", "pairs"),
        ],
      },
    ];
  };

  const taste = (run) => {
    const rows = has(run.rounds, "reward_length").map((r) => ({
      round: r.round,
      reward_length: r.reward_length,
    }));
    return {
      id: "taste",
      title: "Does length pay?",
      hint: "Correlation of reward and length among the samples of one prompt: above 0 the longer ones get more, below 0 the shorter. Where right answers are long that is as it should be; a judge that is not gold, and completions that grow, make it suspect.",
      rows,
      columns: [round, col("reward_length", "correlation")],
      draw: (w, h) =>
        byRound(rows, w, h, {label: "correlation", domain: [-1, 1]}, [
          Plot.ruleY([0], {stroke: "var(--line)"}),
          ...line(rows, "reward_length", REWARD),
          tip(
            rows,
            "round",
            "reward_length",
            (r) => `round ${r.round}\ncorrelation ${number(r.reward_length)}`,
          ),
        ]),
    };
  };

  Object.assign(selfkd, {drift, controls, agreement, taste});
})();
