// The figures of one run, from its figures by round (`run`) and their shapes (`shapes`, or null).
(() => {
  const {number, share, colour, byRound, line, tip, ends, stack, frame} = selfkd;
  const REWARD = "var(--reward)", GOLD = "var(--gold)", KEPT = "var(--kept)", GREY = "var(--muted)";
  const percent = (v) => `${Math.round(100 * v)} %`;
  const has = (rows, ...keys) => rows.filter((r) => keys.some((k) => r[k] !== null && r[k] !== undefined));
  const col = (key, title, more) => ({key, title, ...more});
  const round = col("round", "round");

  const lead = (run) => {
    const rows = has(run.rounds, "reward_mean", "heldout_reward").map((r) => ({
      round: r.round, reward_mean: r.reward_mean, heldout_reward: r.heldout_reward, heldout_stderr: r.heldout_stderr,
      heldout_scored: r.heldout_scored, scored: r.scored, decision: r.gate ? r.gate.decision : null,
      gap: r.reward_mean === null || r.heldout_reward === null ? null : r.reward_mean - r.heldout_reward,
    }));
    const gold = rows.some((r) => r.heldout_reward !== null);
    const back = rows.filter((r) => r.decision === "rolled_back" && r.heldout_reward !== null);
    const words = (r) => [`round ${r.round}`, `judge reward ${number(r.reward_mean)} over ${number(r.scored)} samples`, `held-out ${number(r.heldout_reward)}${r.heldout_stderr ? ` ± ${number(r.heldout_stderr)}` : ""}`, r.decision ? `policy ${r.decision.replace("_", " ")}` : ""].filter(Boolean).join("\n");
    return {
      id: "lead", wide: true, title: gold ? "Judge reward against held-out gold" : "Judge reward",
      hint: gold ? "Both should rise. Samples are drawn at the run's temperature and held-out answers are greedy, so look at how the gap changes: a reward that rises while held-out falls means that the model learns to please the judge, not the task." : "This run has no held-out set with reference answers, so nothing here says whether a higher reward is a better model.",
      rows, height: (w) => Math.round(Math.min(460, Math.max(240, w * 0.4))),
      legend: [{label: "judge reward, mean of the samples", color: REWARD}, gold && {label: "held-out gold, mean ± standard error", color: GOLD, shape: "dashed"}, gold && {label: "gap", color: GREY, shape: "area"}, back.length && {label: "policy rolled back", color: "var(--bad)", shape: "cross"}].filter(Boolean),
      columns: [round, col("reward_mean", "judge reward"), col("heldout_reward", "held-out"), col("heldout_stderr", "standard error"), col("gap", "gap"), col("scored", "samples scored"), col("heldout_scored", "held-out scored"), col("decision", "gate")],
      draw: (w, h) => {
        const all = rows.flatMap((r) => [r.reward_mean, r.heldout_reward]).filter((v) => v !== null);
        return byRound(rows, w, h, {label: "mean reward", domain: [Math.min(0, ...all), Math.max(...all, 0.01) * 1.08]}, [
          Plot.areaY(rows.filter((r) => r.gap !== null), {x: "round", y1: "heldout_reward", y2: "reward_mean", fill: "var(--gap)", fillOpacity: 0.5}),
          Plot.ruleX(rows.filter((r) => r.heldout_stderr), {x: "round", y1: (r) => r.heldout_reward - r.heldout_stderr, y2: (r) => r.heldout_reward + r.heldout_stderr, stroke: GOLD, strokeOpacity: 0.6, strokeWidth: 1.5}),
          line(rows, "reward_mean", REWARD), gold ? line(rows, "heldout_reward", GOLD, {symbol: "square", dash: "6 4"}) : [],
          Plot.dot(back, {x: "round", y: "heldout_reward", symbol: "times", stroke: "var(--bad)", r: 7, strokeWidth: 2.5}),
          tip(rows, "round", (r) => (r.heldout_reward === null ? r.reward_mean : r.heldout_reward), words),
        ]);
      },
    };
  };

  const bands = (shapes) => {
    const rows = shapes.filter((s) => s.reward).map((s) => ({round: s.round, ...s.reward}));
    const few = shapes.every((s) => s.histogram.length <= 2);
    return {
      id: "bands", title: "Spread of the reward", rows,
      empty: rows.length && few ? "The judge gives only one or two values, so its mean says all: see how many of each below." : "",
      hint: "Half of the samples lie in the dark band, nine tenths in the light one. A band that narrows at the top leaves the rules nothing to choose; a mean that rises with a tail that stays means that the easy prompts improve.",
      legend: [{label: "mean", color: REWARD}, {label: "25–75 %", color: REWARD, shape: "area"}, {label: "5–95 %", color: REWARD, shape: "faint"}],
      columns: [round, ...["mean", "p5", "p25", "p50", "p75", "p95"].map((k) => col(k, k.replace("p", "") + (k === "mean" ? "" : " %")))],
      draw: (w, h) => byRound(rows, w, h, {label: "reward"}, [
        Plot.areaY(rows, {x: "round", y1: "p5", y2: "p95", fill: REWARD, fillOpacity: 0.16}), Plot.areaY(rows, {x: "round", y1: "p25", y2: "p75", fill: REWARD, fillOpacity: 0.3}),
        line(rows, "mean", REWARD), tip(rows, "round", "mean", (r) => `round ${r.round}\nmean ${number(r.mean)}\nmedian ${number(r.p50)}\n25–75 %: ${number(r.p25)} to ${number(r.p75)}\n5–95 %: ${number(r.p5)} to ${number(r.p95)}`),
      ]),
    };
  };

  // At most `most` rounds, evenly spaced, the first and the last among them.
  const some = (list, most) => (list.length <= most ? list : Array.from({length: most}, (_, i) => list[Math.round((i * (list.length - 1)) / (most - 1))]));

  const histogram = (shapes) => {
    const filled = shapes.filter((s) => s.histogram.length);
    const rows = filled.flatMap((s) => { const all = selfkd.sum(s.histogram.map((b) => b.count)); return s.histogram.map((b) => ({round: s.round, ...b, share: b.count / all})); });
    const rounds = some([...new Set(rows.map((r) => r.round))], 12);
    return {
      id: "histogram", title: "Rewards, round by round", rows,
      hint: "Each strip is a round, and a bar the share of samples with that reward. Mass should move to the right; two humps mean prompts that are solved and prompts that are not.",
      columns: [round, col("low", "from"), col("high", "to"), col("count", "samples"), col("share", "share", {show: share})],
      height: () => 64 + rounds.length * 46,
      draw: (w, h) => {
        const shown = rows.filter((r) => rounds.includes(r.round));
        const middles = [...new Set(shown.map((r) => (r.low + r.high) / 2))];
        const few = middles.length <= 12;
        const top = Math.max(...shown.map((r) => r.share)) * (few ? 1.45 : 1.05);
        const x = {label: "reward", labelArrow: "right", ...(few ? {ticks: middles, tickFormat: (v) => number(v, 2)} : {ticks: 6})};
        const named = few && middles.length <= w / 60;
        return frame(w, h, x, {axis: null, domain: [0, top]}, [
          Plot.rect(shown, {x1: "low", x2: "high", y1: 0, y2: "share", fy: "round", fill: REWARD, fillOpacity: 0.7, insetLeft: 1, insetRight: 1}),
          Plot.ruleY([0], {stroke: "var(--line)"}),
          named ? Plot.text(shown.filter((r) => r.count), {x: (r) => (r.low + r.high) / 2, y: "share", dy: -8, fy: "round", text: (r) => share(r.share), fill: "var(--text)", fontSize: 11}) : null,
        ].filter(Boolean), {fy: {label: "round", domain: rounds, padding: 0.08, axis: "left", tickFormat: "d"}});
      },
    };
  };

  const passes = (run) => {
    const solved = has(run.rounds, "pass_at_k");
    const ks = [...new Set(solved.flatMap((r) => Object.keys(r.pass_at_k).map(Number)))].sort((a, b) => a - b);
    const rows = solved.map((r) => ({round: r.round, ...Object.fromEntries(ks.map((k) => [`pass@${k}`, r.pass_at_k[k] ?? null]))}));
    const tint = (i) => `color-mix(in oklab, var(--reward) ${ks.length > 1 ? 45 + (55 * i) / (ks.length - 1) : 100}%, var(--panel))`;
    return {
      id: "pass", title: "Prompts solved by k samples (pass@k)", rows: ks.length ? rows : [],
      hint: "The lowest line is one try, the highest the best of all. If pass@1 rises while the highest falls, the model grows surer but can do less: later rounds have less to learn from. Solved is a reward of at least 1.",
      columns: [round, ...ks.map((k) => col(`pass@${k}`))],
      draw: (w, h) => byRound(rows, w, h, {label: "share of prompts", domain: [0, 1], tickFormat: percent}, [
        ...ks.flatMap((k, i) => line(rows, `pass@${k}`, tint(i))),
        ends(ks.map((k, i) => ({x: rows[rows.length - 1].round, y: rows[rows.length - 1][`pass@${k}`] ?? 0, label: `k=${k}`, color: tint(i)})), h, [0, 1]),
        tip(rows, "round", `pass@${ks[0]}`, (r) => [`round ${r.round}`, ...ks.slice().reverse().map((k) => `pass@${k} ${number(r[`pass@${k}`])}`)].join("\n")),
      ], {marginRight: 48}),
    };
  };

  const funnel = (run) => {
    const made = has(run.rounds, "samples", "kept").filter((r) => r.samples || r.kept !== null);
    const reasons = [...new Set(made.flatMap((r) => Object.keys(r.dropped || {})))];
    const rows = made.map((r) => {
      const dropped = selfkd.sum(Object.values(r.dropped || {}));
      const more = selfkd.sum(Object.values(r.extra || {}).map((e) => e.samples));
      return {round: r.round, generated: (r.samples || 0) + more, scored: r.scored, kept: r.kept, ...Object.fromEntries(reasons.map((d) => [`dropped: ${d}`, (r.dropped || {})[d] || 0])), undecided: Math.max(0, (r.samples || 0) + more - (r.kept || 0) - dropped)};
    });
    const parts = [{key: "kept", label: "kept", color: KEPT}, ...reasons.map((d, i) => ({key: `dropped: ${d}`, label: `dropped: ${d}`, color: colour(i + 2)}))];
    if (rows.some((r) => r.undecided)) parts.push({key: "undecided", label: "not decided on", color: "var(--grid)"});
    return {
      id: "funnel", title: "What became of the samples", rows,
      hint: "A bar is what a round generated, split into what was kept for training and why the rest was dropped. Next to nothing kept teaches nothing; nearly all kept means that the judge hardly chooses. The last round is only measured.",
      legend: parts.map((p) => ({...p, shape: "box"})),
      columns: [round, col("generated"), col("scored"), col("kept"), ...reasons.map((d) => col(`dropped: ${d}`)), col("undecided", "not decided on")],
      draw: (w, h) => stack(rows, parts, w, h, "samples"),
    };
  };

  const shares = (id, title, hint, run, keys, more = {}) => {
    const rows = has(run.rounds, ...keys.map((k) => k.key)).map((r) => ({round: r.round, ...Object.fromEntries(keys.map((k) => [k.key, r[k.key]]))}));
    const shown = more.format || percent;
    return {
      id, title, hint, rows, legend: keys.map((k) => ({label: k.label, color: k.color, shape: k.dash ? "dashed" : "line"})), columns: [round, ...keys.map((k) => col(k.key, k.label))],
      draw: (w, h) => byRound(rows, w, h, {label: more.label || "share", tickFormat: shown, ...(more.free ? {domain: [0, Math.max(...rows.flatMap((r) => keys.map((k) => r[k.key] || 0))) * 1.08]} : {domain: [0, 1]})}, [
        ...keys.flatMap((k) => line(rows, k.key, k.color, {symbol: k.symbol, dash: k.dash})),
        tip(rows, "round", (r) => r[keys.find((k) => r[k.key] !== null).key], (r) => [`round ${r.round}`, ...keys.map((k) => `${k.label}: ${more.free ? number(r[k.key]) : share(r[k.key])}`)].join("\n")),
      ]),
    };
  };

  const lengthReward = (shapes) => {
    const rows = shapes.flatMap((s) => s.by_length.map((b) => ({round: s.round, ...b})));
    const rounds = some([...new Set(rows.map((r) => r.round))], 3);
    const shade = (r) => `color-mix(in oklab, var(--reward) ${rounds.length > 1 ? 30 + (70 * rounds.indexOf(r)) / (rounds.length - 1) : 100}%, var(--gold))`;
    const shown = rows.filter((r) => rounds.includes(r.round)).map((r) => ({...r, color: shade(r.round)}));
    return {
      id: "length-reward", title: "Length against reward", rows,
      hint: "Each line is a round, each dot about a sixth of its samples. A judge that pays for length by itself shows a line that climbs to the right, and later rounds that move there.",
      legend: rounds.map((r) => ({label: `round ${r}`, color: shade(r)})),
      columns: [round, col("low", "tokens from"), col("high", "to"), col("length_mean", "mean tokens"), col("count", "samples"), col("reward_mean", "mean reward")],
      draw: (w, h) => frame(w, h, {label: "tokens a completion", labelArrow: "right", ticks: Math.max(3, Math.round(w / 90))}, {label: "mean reward", ticks: 5, nice: true, zero: true}, [
        Plot.line(shown, {x: "length_mean", y: "reward_mean", z: "round", stroke: "color", strokeWidth: 2}), Plot.dot(shown, {x: "length_mean", y: "reward_mean", fill: "color", r: 3.5}),
        tip(shown, "length_mean", "reward_mean", (r) => `round ${r.round}\n${r.low} to ${r.high} tokens\nmean reward ${number(r.reward_mean)}\n${r.count} samples`),
      ], {color: {type: "identity"}}),
    };
  };

  const health = (run) => {
    const judged = has(run.rounds, "scored").filter((r) => r.scored + r.unscored);
    const statuses = [...new Set(judged.flatMap((r) => Object.keys(r.unscored_by || {})))];
    const rows = judged.map((r) => { const all = r.scored + r.unscored; return {round: r.round, scored: r.scored / all, ...Object.fromEntries(statuses.map((s) => [s, ((r.unscored_by || {})[s] || 0) / all])), samples: all}; });
    const parts = [{key: "scored", label: "scored", color: KEPT}, ...statuses.map((s, i) => ({key: s, label: `no reward: ${s}`, color: colour(i + 2)}))];
    return {
      id: "health", title: "Judge health", rows,
      hint: "The share of samples that the judge gave a reward. What it could not score counts nowhere as 0, so a judge that fails on the hard samples makes the mean look better than it is: above 5 % find out why.",
      legend: parts.map((p) => ({...p, shape: "box"})), columns: [round, col("samples", "judged"), ...parts.map((p) => col(p.key, p.label, {show: share}))],
      draw: (w, h) => stack(rows, parts, w, h, "share of samples", percent),
    };
  };

  const training = (shapes, key, id, title, hint) => {
    let before = 0;
    const borders = [];
    const rows = [];
    for (const s of shapes) {
      const log = s.log.filter((l) => l[key] !== undefined);
      if (!log.length) continue;
      borders.push({at: before + 1, round: s.round});
      rows.push(...log.map((l, i) => ({round: s.round, step: l.step ?? i + 1, at: before + (l.step ?? i + 1), [key]: l[key]})));
      before += Math.max(...s.log.map((l, i) => l.step ?? i + 1));
    }
    return {
      id, title, hint, rows, columns: [round, col("step", "optimiser step"), col(key, title.toLowerCase())],
      draw: (w, h) => frame(w, h, {label: "optimiser steps of all rounds", labelArrow: "right", ticks: Math.max(3, Math.round(w / 90)), tickFormat: "d"}, {label: null, ticks: 5, nice: true, zero: true}, [
        Plot.ruleX(borders, {x: "at", stroke: "var(--line)", strokeDasharray: "2 3"}), Plot.text(some(borders, Math.max(2, Math.floor(w / 70))), {x: "at", frameAnchor: "top", dy: -12, dx: 2, textAnchor: "start", text: (b) => `round ${b.round}`, fill: "var(--muted)"}),
        Plot.line(rows, {x: "at", y: key, z: "round", stroke: REWARD, strokeWidth: 1.7}), rows.length < 200 ? Plot.dot(rows, {x: "at", y: key, fill: REWARD, r: 2}) : null,
        tip(rows, "at", key, (r) => `round ${r.round}, step ${r.step}\n${number(r[key])}`),
      ].filter(Boolean)),
    };
  };

  const seconds = (run) => {
    const parts = ["generate", "judge", "train", "evaluate"].map((verb, i) => ({key: verb, label: verb, color: colour(i)}));
    const rows = run.rounds.filter((r) => parts.some((p) => r.seconds[p.key] !== null)).map((r) => ({round: r.round, ...Object.fromEntries(parts.map((p) => [p.key, r.seconds[p.key]]))}));
    return {
      id: "seconds", title: "Where the time goes", rows,
      hint: "Wall-clock seconds of each verb. Judging runs beside generation, so it counts without the waiting; evaluate is all held-out work.",
      legend: parts.map((p) => ({...p, shape: "box"})), columns: [round, ...parts.map((p) => col(p.key, `${p.key}, s`))],
      draw: (w, h) => stack(rows, parts, w, h, "seconds"),
    };
  };

  const speed = (shapes) => {
    const rows = shapes.map((s) => {
      const of = (verb, heldout) => { const mine = s.steps.filter((t) => t.verb === verb && t.tokens && t.seconds && (t.label === "heldout") === heldout); const time = selfkd.sum(mine.map((t) => t.seconds)); return time ? selfkd.sum(mine.map((t) => t.tokens)) / time : null; };
      return {round: s.round, generate: of("generate", false), evaluate: of("generate", true), train: of("train", false)};
    });
    const keys = [{key: "generate", label: "generate", color: colour(0)}, {key: "train", label: "train", color: colour(2), symbol: "square"}, {key: "evaluate", label: "evaluate", color: colour(3), symbol: "triangle", dash: "6 4"}];
    return shares("speed", "Tokens a second", "Tokens sampled or trained on, over the seconds of the step. Short completions lower it: an engine is slowest while it starts and while the last few finish.", {rounds: rows}, keys, {free: true, label: "tokens/s", format: (v) => number(v, 0)});
  };

  selfkd.plots = (run, shapes) => {
    const length = [{key: "length_mean", label: "mean", color: colour(0)}, {key: "length_p95", label: "95 % are shorter", color: colour(1), dash: "6 4", symbol: "square"}];
    const diversity = [{key: "unique", label: "distinct completions of a prompt", color: colour(2)}, {key: "distinct_2", label: "distinct token pairs", color: colour(3), dash: "6 4", symbol: "square"}];
    const choosing = [{key: "accept_rate", label: "samples kept", color: KEPT}, {key: "coverage", label: "prompts with a kept sample", color: colour(0), dash: "6 4", symbol: "square"}, {key: "truncated", label: "completions cut at the limit", color: "var(--bad)", dash: "2 4", symbol: "triangle"}];
    const first = [lead(run), passes(run), funnel(run)];
    const last = [
      shares("diversity", "Diversity", "The share of a prompt's samples that differ, and of token pairs that occur once in a set. Both fall as a model learns from itself; when they collapse, sampling more finds nothing new.", run, diversity),
      shares("choosing", "Acceptance and coverage", "Coverage falling below a fifth means that the model learns the easy prompts only. Completions cut at the limit are halves that a judge can hardly be right about.", run, choosing),
      shares("length", "Length", "Growth that reward does not explain is drift: judges often pay for length. A 95 % line at the token limit means that completions are cut.", run, length, {free: true, label: "tokens a completion", format: (v) => number(v, 0)}),
      health(run), seconds(run),
    ];
    if (!shapes) return [...first, ...last];
    return [...first, bands(shapes), histogram(shapes), lengthReward(shapes), ...last, speed(shapes),
      training(shapes, "loss", "loss", "Loss", "The trainer's loss at each optimiser step. It may start lower each round, since the model has seen its own words; near 0 it learns by heart, and a jump is a bad batch or too high a learning rate."),
      training(shapes, "grad_norm", "gradient", "Gradient norm", "Before clipping. Spikes are steps that moved the model far: look at the examples of that round."),
    ];
  };
})();
