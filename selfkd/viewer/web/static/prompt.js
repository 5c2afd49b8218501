// All samples of one prompt, side by side and round by round, each with what became of it.
(() => {
  const {el, number} = selfkd;
  const main = document.getElementById("main");
  const prompt = decodeURIComponent(location.pathname.split("/prompts/")[1]);
  const place = el("div");
  let jumped = false;
  main.append(place);

  const group = (g) => {
    const scored = g.samples.filter((s) => s.reward !== null);
    const mean = scored.length
      ? `, mean reward ${number(selfkd.sum(scored.map((s) => s.reward)) / scored.length)}`
      : "";
    return el(
      "section",
      {},
      el(
        "h2",
        {},
        `Round ${g.round}${g.label === "heldout" ? ", held-out" : g.label ? `, ${g.label}` : ""}`,
      ),
      el(
        "p",
        {class: "hint"},
        `${number(g.total)} ${g.total === 1 ? "sample" : "samples"}${mean}${g.total > g.samples.length ? `; the first ${g.samples.length} are shown` : ""}. `,
        selfkd.samplesLink({round: g.round, label: g.label, prompt}, "Filter them"),
      ),
      el(
        "div",
        {class: "cards"},
        g.samples.map((s) => selfkd.sampleCard(s)),
      ),
    );
  };

  const cards = () => [...place.querySelectorAll("article.sample")];
  const go = (card) => {
    cards().forEach((c) => c.classList.toggle("current", c === card));
    card.focus({preventScroll: true});
    card.scrollIntoView({block: "nearest", inline: "nearest"});
    history.replaceState(null, "", `#${encodeURIComponent(card.dataset.id)}`);
  };

  addEventListener("keydown", (e) => {
    if (!"jk".includes(e.key) || e.key.length !== 1 || e.ctrlKey || e.metaKey || e.altKey) return;
    const all = cards();
    const next = all.findIndex((c) => c.classList.contains("current")) + (e.key === "j" ? 1 : -1);
    if (all.length) go(all[Math.min(all.length - 1, Math.max(0, next))]);
  });

  selfkd.follow(
    () => selfkd.path("api", "runs", selfkd.run, "prompts", prompt),
    (story) => {
      place.replaceChildren(
        el("h1", {}, "One prompt"),
        el("pre", {class: "said prompt"}, selfkd.visible(story.text ?? "")),
        el(
          "dl",
          {class: "fields"},
          el("dt", {}, "expected"),
          el("dd", {}, story.answer ?? "no reference answer"),
          el("dt", {}, "id"),
          el("dd", {}, el("code", {}, story.prompt)),
        ),
        el(
          "p",
          {class: "hint"},
          "Policy, decision and example of each sample link on: forward to the policy that learnt it, back to the one that made it. j and k go through the samples.",
        ),
        el(
          "div",
          {class: story.groups.every((g) => g.total === 1) ? "cards" : null}, // one a round: side by side
          story.groups.map(group),
        ),
      );
      const hash = decodeURIComponent(location.hash.slice(1));
      const target = hash && document.getElementById(`sample:${hash}`);
      if (target && !jumped) {
        jumped = true;
        go(target);
        target.scrollIntoView({block: "center"});
      }
    },
  );
})();
