"use strict";
const at = (id) => document.getElementById(id);
const claims = Array.from(document.querySelectorAll("article.claim"));
const texts = new Map(claims.map((claim) => [claim, claim.textContent.toLowerCase()]));
const root = document.documentElement;

// Filter: the table and the list together.
function filter() {
  const words = at("text").value.toLowerCase().split(/\s+/);
  const kind = at("kind").value || "verdict", verdict = at("verdict").value;
  let shown = 0;
  for (const claim of claims) {
    const row = document.querySelector(`tr[data-claim="${claim.id}"]`);
    const text = texts.get(claim);
    const fits = (!verdict || row.getAttribute("data-" + kind) === verdict) && words.every((word) => text.includes(word));
    row.hidden = claim.hidden = !fits;
    shown += fits;
  }
  at("shown").textContent = shown === claims.length ? `${shown} claims` : `${shown} of ${claims.length} claims match`;
}
for (const id of ["text", "kind", "verdict"]) at(id).addEventListener("input", filter);
at("controls").addEventListener("submit", (event) => event.preventDefault());

// Folding.
const fold = (open) => claims.forEach((claim) => { claim.querySelector("details").open = open; });
at("unfold").addEventListener("click", () => fold(true));
at("fold").addEventListener("click", () => fold(false));

// A link to a claim, or to anything inside one, shows it unfolded, filtered out or not.
function reveal() {
  const target = location.hash.length > 1 && at(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  const claim = target.closest("article.claim");
  if (!claim) return;
  if (claim.hidden) { at("controls").reset(); filter(); }
  const details = claim.querySelector("details");
  details.open = true;
  details.querySelector("summary").focus({ preventScroll: true });
  target.scrollIntoView();
}
addEventListener("hashchange", reveal);
document.addEventListener("click", (event) => {  // the same link a second time changes no address
  const link = event.target.closest("a[href^='#']");
  if (link && link.hash === location.hash) setTimeout(reveal);
});

// What is wider than the page scrolls, then also by keyboard.
function reachable(inside) {
  for (const equation of inside.querySelectorAll(".eq")) {
    if (equation.scrollWidth > equation.clientWidth) {
      for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", "Equation, scrolls"]]) {
        equation.setAttribute(name, value);
      }
    } else for (const name of ["tabindex", "role", "aria-label"]) equation.removeAttribute(name);
  }
}
document.addEventListener("toggle", (event) => reachable(event.target), true);
addEventListener("resize", () => document.querySelectorAll("details[open]").forEach(reachable));

// Light or dark: as the system says, until the button is used; nothing is stored.
const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
const label = () => at("theme").setAttribute("aria-pressed", isDark());
at("theme").addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
dark.addEventListener("change", label);

// Paper has no folds.
let folded = [];
addEventListener("beforeprint", () => {
  folded = Array.from(document.querySelectorAll("details:not([open])"));
  folded.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));

at("theme").hidden = at("controls").hidden = false;
label();
filter();
reveal();
