// The figures of one run, from its figures by round (`run`) and their shapes (`shapes`, or null).
(() => {
  const {number, colour, second, third} = selfkd;
  const {lead, bands, histogram, passes, lengthReward} = selfkd;
  const {funnel, shares, health, seconds, speed} = selfkd;
  const {drift, controls, agreement, taste} = selfkd;
  const KEPT = "var(--kept)";

  selfkd.plots = (run, shapes) => {
    const length = [
      {key: "length_mean", label: "mean", color: colour(0)},
      {key: "length_p95", label: "95 % are shorter", color: colour(1), ...second},
    ];
    const diversity = [
      {key: "unique", label: "distinct completions of a prompt", color: colour(2)},
      {key: "distinct_2", label: "distinct token pairs", color: colour(3), ...second},
      {key: "similarity", label: "likeness of two samples of a prompt", color: colour(5), ...third},
    ];
    const choosing = [
      {key: "accept_rate", label: "samples kept", color: KEPT},
      {key: "coverage", label: "prompts with a kept sample", color: colour(0), ...second},
      {key: "truncated", label: "completions cut at the limit", color: "var(--bad)", ...third},
    ];
    const distance = [
      {key: "kl_base", label: "from the base", color: colour(0)},
      {key: "kl_previous", label: "from the policy before", color: colour(1), ...second},
    ];
    const moved = run.rounds.some((r) => r.kl_base);
    const first = [lead(run), passes(run), funnel(run)];
    const last = [
      shares(
        "diversity",
        "Diversity",
        "The share of a prompt's samples that differ, of the pairs of adjacent tokens that are not repeats, and of those pairs that two samples of a prompt have in common. The first two fall and the last rises as a model learns from itself; when they collapse, sampling more finds nothing new.",
        run,
        diversity,
      ),
      shares(
        "choosing",
        "Acceptance and coverage",
        "Coverage falling below a fifth means that the model learns the easy prompts only. Completions cut at the limit are halves that a judge can hardly be right about.",
        run,
        choosing,
      ),
      shares(
        "length",
        "Length",
        "Growth that reward does not explain is drift: judges often pay for length. A 95 % line at the token limit means that completions are cut.",
        run,
        length,
        {free: true, label: "tokens a completion", format: (v) => number(v, 0)},
      ),
      ...(moved
        ? [
            shares(
              "distance",
              "Distance from the base",
              "How far next-token probabilities have moved on a few of the base's own answers, always the same: a lower bound of the KL divergence. Distance is what learning costs: where it grows and held-out does not, the policy drifts.",
              run,
              distance,
              {free: true, label: "KL, nats a token", format: (v) => number(v, 3)},
            ),
          ]
        : []),
      taste(run),
      health(run),
      ...agreement(run),
      ...controls(run),
      ...drift(run),
      seconds(run),
    ];
    if (!shapes) return [...first, ...last];
    const wide = shapes.some((s) => s.histogram.length > 2) ? [bands(shapes)] : []; // of two values the mean says all
    return [
      ...first,
      ...wide,
      histogram(shapes),
      lengthReward(shapes),
      ...last,
      speed(shapes),
      ...selfkd.trainings(shapes),
    ];
  };
})();
