// A run: its state, alarms, figures and policies, drawn anew as it goes on.
(() => {
  const {el} = selfkd;
  const main = document.getElementById("main");
  const url = selfkd.path("api", "runs", selfkd.run);
  const place = {
    head: el("div"),
    alarms: el("div"),
    plots: el("div", {class: "figures"}),
    policies: el("section", {class: "panel"}),
  };
  main.append(place.head, place.alarms, place.plots, place.policies);
  selfkd.follow(
    () => url,
    async (run) => {
      place.head.replaceChildren(...selfkd.runHead(run));
      place.alarms.replaceChildren(...selfkd.alarmList(run));
      selfkd.figures(place.plots, selfkd.plots(run, selfkd.lastShapes || null));
      place.policies.replaceChildren(...selfkd.policyList(run));
      const {data} = await selfkd.get(`${url}/shapes`);
      selfkd.lastShapes = data;
      selfkd.figures(place.plots, selfkd.plots(run, data));
    },
  );
})();
