// Dark or light: what was chosen, else what the system prefers. Runs before anything is drawn.
(() => {
  const root = document.documentElement;
  const read = () => {
    try {
      return localStorage.getItem("selfkd-theme");
    } catch {
      return null;
    }
  };
  const write = (value) => {
    try {
      localStorage.setItem("selfkd-theme", value);
    } catch {
      /* private window */
    }
  };
  const system = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.dataset.theme = read() || system();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    root.dataset.theme = read() || system();
  });
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (!button) return;
    const name = () => {
      button.textContent = root.dataset.theme === "dark" ? "light" : "dark";
      button.title = `Show the page ${button.textContent}`;
    };
    button.addEventListener("click", () => {
      root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
      write(root.dataset.theme);
      name();
    });
    name();
  });
})();
