// A run's page from data in the file itself: no server, so no links to other pages either.
(() => {
  const {el} = selfkd;
  selfkd.offline = true;
  const {run, shapes, samples} = JSON.parse(document.getElementById("data").textContent);
  const place = el("div", {class: "figures"});
  const main = document.getElementById("main");
  main.append(
    ...selfkd.runHead(run),
    ...selfkd.alarmList(run),
    place,
    el("section", {class: "panel"}, selfkd.policyList(run)),
  );
  selfkd.figures(place, selfkd.plots(run, shapes));
  const group = (g) =>
    el(
      "details",
      {class: "panel", open: g === samples[0]},
      el(
        "summary",
        {},
        `Round ${g.round}${g.label ? ` (${g.label})` : ""}: ${g.samples.length} samples`,
      ),
      el(
        "div",
        {class: "cards"},
        g.samples.map((s) => selfkd.sampleCard(s, {prompt: true})),
      ),
    );
  if (samples.length)
    main.append(
      el("h1", {}, "Some samples"),
      el(
        "p",
        {class: "hint"},
        "The first ones of each round, half of them kept where rules decided.",
      ),
      ...samples.map(group),
    );
})();
