/* Moves the border between the two pictures of every slider to where its range stands. */

document.querySelectorAll(".before-after-frame").forEach((frame) => {
  const range = frame.querySelector("input");
  const move = () => {
    frame.style.setProperty("--border", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${100 - range.value} % restored`);
  };
  range.addEventListener("input", move);
  frame.classList.add("ready");
  move();
});
