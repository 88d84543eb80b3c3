// Curves: a pointer near a point tells its value, a click in the list hides a line or shows it again, and a pointer on the list lights it.
// Without this the points' own titles tell their values and every line is there.
for (const live of document.querySelectorAll(".live")) {
  const svg = live.querySelector("svg.curves"), tip = live.querySelector(".tip");
  const marks = [...svg.querySelectorAll(".mark")].map((mark) => {
    const title = mark.querySelector("title"), words = title.textContent, [x, y] = mark.dataset.at.split(" ").map(Number);
    title.remove();
    return { mark, words, x, y, line: mark.closest(".line") };
  });
  function point(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let nearest = null, least = 40;
    for (const mark of marks) {
      const distance = Math.hypot(mark.x - at.x, mark.y - at.y);
      if (distance < least && !mark.line.classList.contains("off")) [nearest, least] = [mark, distance];
    }
    for (const mark of marks) mark.mark.classList.toggle("near", mark === nearest);
    for (const line of svg.querySelectorAll(".line")) line.classList.toggle("lit", nearest !== null && line === nearest.line);
    tip.hidden = nearest === null;
    if (nearest === null) return;
    tip.textContent = nearest.words;
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width, room = box.width - tip.offsetWidth;
    tip.style.left = Math.max(0, Math.min(room, nearest.x * scale - tip.offsetWidth / 2)) + "px";
    tip.style.top = Math.max(0, nearest.y * scale - tip.offsetHeight - 10) + "px";
  }
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", () => { tip.hidden = true; for (const lit of svg.querySelectorAll(".lit, .near")) lit.classList.remove("lit", "near"); });
  for (const button of live.querySelectorAll(".legend button")) {
    const line = svg.querySelector(`.line[data-n="${button.dataset.n}"]`);
    button.addEventListener("click", () => button.setAttribute("aria-pressed", String(!line.classList.toggle("off"))) );
    for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]])
      button.addEventListener(event, () => line.classList.toggle("lit", on));
  }
}
// Paper has no folds.
addEventListener("beforeprint", () => { for (const folded of document.querySelectorAll("details")) folded.open = true; });
