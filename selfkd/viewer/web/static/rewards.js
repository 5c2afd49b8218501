// Figures about reward: against held-out, its spread, pass@k, and how length goes with it.
(() => {
  const {number, share, colour, byRound, line, tip, ends, frame, has, col, some, percent} = selfkd;
  const REWARD = "var(--reward)";
  const GOLD = "var(--gold)";
  const round = col("round", "round");

  const lead = (run) => {
    const rows = has(run.rounds, "reward_mean", "heldout_reward").map((r) => ({
      round: r.round,
      reward_mean: r.reward_mean,
      heldout_reward: r.heldout_reward,
      heldout_stderr: r.heldout_stderr,
      heldout_scored: r.heldout_scored,
      scored: r.scored,
      decision: r.gate ? r.gate.decision : null,
      gap:
        r.reward_mean === null || r.heldout_reward === null
          ? null
          : r.reward_mean - r.heldout_reward,
    }));
    const gold = rows.some((r) => r.heldout_reward !== null);
    const back = rows.filter((r) => r.decision === "rolled_back" && r.heldout_reward !== null);
    const words = (r) =>
      [
        `round ${r.round}`,
        `judge reward ${number(r.reward_mean)} over ${number(r.scored)} samples`,
        `held-out ${number(r.heldout_reward)}${r.heldout_stderr ? ` ± ${number(r.heldout_stderr)}` : ""}`,
        r.decision ? `policy ${r.decision.replace("_", " ")}` : "",
      ]
        .filter(Boolean)
        .join("\n");
    return {
      id: "lead",
      wide: true,
      title: gold ? "Judge reward against held-out gold" : "Judge reward",
      hint: gold
        ? "Both should rise. Samples are drawn at the run's temperature and held-out answers are greedy, so look at how the gap changes: a reward that rises while held-out falls means that the model learns to please the judge, not the task."
        : "This run has no held-out set with reference answers, so nothing here says whether a higher reward is a better model.",
      rows,
      height: (w) => Math.round(Math.min(460, Math.max(240, w * 0.4))),
      legend: [
        {label: "judge reward, mean of the samples", color: REWARD, symbol: "circle"},
        gold && {
          label: "held-out gold, mean ± standard error",
          color: GOLD,
          shape: "dashed",
          symbol: "square",
        },
        gold && {label: "gap", color: "var(--gap)", shape: "area"},
        back.length && {label: "policy rolled back", color: "var(--bad)", shape: "cross"},
      ].filter(Boolean),
      columns: [
        round,
        col("reward_mean", "judge reward"),
        col("heldout_reward", "held-out"),
        col("heldout_stderr", "standard error"),
        col("gap", "gap"),
        col("scored", "samples scored"),
        col("heldout_scored", "held-out scored"),
        col("decision", "gate"),
      ],
      draw: (w, h) => {
        const all = rows
          .flatMap((r) => [r.reward_mean, r.heldout_reward])
          .filter((v) => v !== null);
        return byRound(
          rows,
          w,
          h,
          {label: "mean reward", domain: [Math.min(0, ...all), Math.max(...all, 0.01) * 1.08]},
          [
            Plot.areaY(
              rows.filter((r) => r.gap !== null),
              {
                x: "round",
                y1: "heldout_reward",
                y2: "reward_mean",
                fill: "var(--gap)",
                fillOpacity: 0.5,
              },
            ),
            Plot.ruleX(
              rows.filter((r) => r.heldout_stderr),
              {
                x: "round",
                y1: (r) => r.heldout_reward - r.heldout_stderr,
                y2: (r) => r.heldout_reward + r.heldout_stderr,
                stroke: GOLD,
                strokeOpacity: 0.6,
                strokeWidth: 1.5,
              },
            ),
            line(rows, "reward_mean", REWARD),
            gold ? line(rows, "heldout_reward", GOLD, {symbol: "square", dash: "6 4"}) : [],
            Plot.dot(back, {
              x: "round",
              y: "heldout_reward",
              symbol: "times",
              stroke: "var(--bad)",
              r: 7,
              strokeWidth: 2.5,
            }),
            tip(
              rows,
              "round",
              (r) => (r.heldout_reward === null ? r.reward_mean : r.heldout_reward),
              words,
            ),
          ],
        );
      },
    };
  };

  const bands = (shapes) => {
    const rows = shapes.filter((s) => s.reward).map((s) => ({round: s.round, ...s.reward}));
    return {
      id: "bands",
      title: "Spread of the reward",
      rows,
      hint: "Half of the samples lie in the dark band, nine tenths in the light one. A band that narrows at the top leaves the rules nothing to choose; a mean that rises with a tail that stays means that the easy prompts improve.",
      legend: [
        {label: "mean", color: REWARD},
        {label: "25–75 %", color: REWARD, shape: "area"},
        {label: "5–95 %", color: REWARD, shape: "faint"},
      ],
      columns: [
        round,
        ...["mean", "p5", "p25", "p50", "p75", "p95"].map((k) =>
          col(k, k.replace("p", "") + (k === "mean" ? "" : " %")),
        ),
      ],
      draw: (w, h) =>
        byRound(rows, w, h, {label: "reward"}, [
          Plot.areaY(rows, {x: "round", y1: "p5", y2: "p95", fill: REWARD, fillOpacity: 0.16}),
          Plot.areaY(rows, {x: "round", y1: "p25", y2: "p75", fill: REWARD, fillOpacity: 0.3}),
          line(rows, "mean", REWARD),
          tip(
            rows,
            "round",
            "mean",
            (r) =>
              `round ${r.round}\nmean ${number(r.mean)}\nmedian ${number(r.p50)}\n25–75 %: ${number(r.p25)} to ${number(r.p75)}\n5–95 %: ${number(r.p5)} to ${number(r.p95)}`,
          ),
        ]),
    };
  };

  const histogram = (shapes) => {
    const filled = shapes.filter((s) => s.histogram.length);
    const rows = filled.flatMap((s) => {
      const all = selfkd.sum(s.histogram.map((b) => b.count));
      return s.histogram.map((b) => ({round: s.round, ...b, share: b.count / all}));
    });
    const rounds = some([...new Set(rows.map((r) => r.round))], 8);
    return {
      id: "histogram",
      title: "Rewards, round by round",
      rows,
      hint: "Each strip is a round, and a bar the share of samples with that reward. Mass should move to the right; two humps mean prompts that are solved and prompts that are not.",
      columns: [
        round,
        col("low", "from"),
        col("high", "to"),
        col("count", "samples"),
        col("share", "share", {show: share}),
      ],
      height: () => 64 + rounds.length * 46,
      draw: (w, h) => {
        const shown = rows.filter((r) => rounds.includes(r.round));
        const middles = [...new Set(shown.map((r) => (r.low + r.high) / 2))];
        const few = middles.length <= 12;
        const top = Math.max(...shown.map((r) => r.share)) * (few ? 1.45 : 1.05);
        const x = {
          label: "reward",
          labelArrow: "right",
          ...(few ? {ticks: middles, tickFormat: (v) => number(v, 2)} : {ticks: 6}),
        };
        const named = few && middles.length <= w / 60;
        return frame(
          w,
          h,
          x,
          {axis: null, domain: [0, top]},
          [
            Plot.rect(shown, {
              x1: "low",
              x2: "high",
              y1: 0,
              y2: "share",
              fy: "round",
              fill: REWARD,
              fillOpacity: 0.7,
              insetLeft: 1,
              insetRight: 1,
            }),
            Plot.ruleY([0], {stroke: "var(--line)"}),
            named
              ? Plot.text(
                  shown.filter((r) => r.count),
                  {
                    x: (r) => (r.low + r.high) / 2,
                    y: "share",
                    dy: -8,
                    fy: "round",
                    text: (r) => share(r.share),
                    fill: "var(--text)",
                    fontSize: "0.7rem",
                  },
                )
              : null,
          ].filter(Boolean),
          {fy: {label: "round", domain: rounds, padding: 0.08, axis: "left", tickFormat: "d"}},
        );
      },
    };
  };

  const passes = (run) => {
    const solved = has(run.rounds, "pass_at_k");
    const ks = [...new Set(solved.flatMap((r) => Object.keys(r.pass_at_k).map(Number)))].sort(
      (a, b) => a - b,
    );
    const rows = solved.map((r) => ({
      round: r.round,
      ...Object.fromEntries(ks.map((k) => [`pass@${k}`, r.pass_at_k[k] ?? null])),
    }));
    const tint = (i) =>
      `color-mix(in oklab, var(--reward) ${ks.length > 1 ? 62 + (38 * i) / (ks.length - 1) : 100}%, var(--panel))`;
    return {
      id: "pass",
      title: "Prompts solved by k samples (pass@k)",
      rows: ks.length ? rows : [],
      hint: "The lowest line is one try, the highest the best of all. If pass@1 rises while the highest falls, the model grows surer but can do less: later rounds have less to learn from. Solved is a reward of at least 1.",
      columns: [round, ...ks.map((k) => col(`pass@${k}`))],
      draw: (w, h) =>
        byRound(
          rows,
          w,
          h,
          {label: "share of prompts", domain: [0, 1], tickFormat: percent},
          [
            ...ks.flatMap((k, i) => line(rows, `pass@${k}`, tint(i))),
            ends(
              ks.map((k, i) => ({
                x: rows[rows.length - 1].round,
                y: rows[rows.length - 1][`pass@${k}`] ?? 0,
                label: `k=${k}`,
                color: tint(i),
              })),
              h,
              [0, 1],
            ),
            tip(rows, "round", `pass@${ks[0]}`, (r) =>
              [
                `round ${r.round}`,
                ...ks
                  .slice()
                  .reverse()
                  .map((k) => `pass@${k} ${number(r[`pass@${k}`])}`),
              ].join("\n"),
            ),
          ],
          {marginRight: 48},
        ),
    };
  };

  const lengthReward = (shapes) => {
    const rows = shapes.flatMap((s) => s.by_length.map((b) => ({round: s.round, ...b})));
    const rounds = some([...new Set(rows.map((r) => r.round))], 3);
    const shade = (r) =>
      r === rounds[rounds.length - 1] ? REWARD : r === rounds[0] ? GOLD : colour(3);
    const shown = rows
      .filter((r) => rounds.includes(r.round))
      .map((r) => ({...r, color: shade(r.round)}));
    return {
      id: "length-reward",
      title: "Length against reward",
      rows,
      hint: "Each line is a round (the first, a middle one, the last), each dot about a sixth of its samples. A judge that pays for length by itself shows a line that climbs to the right, and later rounds that move there.",
      legend: rounds.map((r) => ({label: `round ${r}`, color: shade(r), symbol: "circle"})),
      columns: [
        round,
        col("low", "tokens from"),
        col("high", "to"),
        col("length_mean", "mean tokens"),
        col("count", "samples"),
        col("reward_mean", "mean reward"),
      ],
      draw: (w, h) =>
        frame(
          w,
          h,
          {
            label: "tokens a completion",
            labelArrow: "right",
            ticks: Math.max(3, Math.round(w / 90)),
          },
          {label: "mean reward", ticks: 5, nice: true, zero: true},
          [
            Plot.line(shown, {
              x: "length_mean",
              y: "reward_mean",
              z: "round",
              stroke: "color",
              strokeWidth: 2,
            }),
            Plot.dot(shown, {x: "length_mean", y: "reward_mean", fill: "color", r: 3.5}),
            tip(
              shown,
              "length_mean",
              "reward_mean",
              (r) =>
                `round ${r.round}\n${r.low} to ${r.high} tokens\nmean reward ${number(r.reward_mean)}\n${r.count} samples`,
            ),
          ],
          {color: {type: "identity"}},
        ),
    };
  };

  Object.assign(selfkd, {lead, bands, histogram, passes, lengthReward});
})();
