"use strict";
(() => {
  const compare = document.getElementById("compare");
  if (!compare) return;
  document.documentElement.classList.add("js");
  const cut = document.getElementById("cut");
  const end = document.getElementById("right-end");
  const show = () => {
    compare.style.setProperty("--cut", `${cut.value}%`);
    cut.setAttribute("aria-valuetext", `${cut.value} % of each picture from the left side`);
  };
  cut.addEventListener("input", show);
  show();

  const pull = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    cut.value = Math.round(100 * Math.min(1, Math.max(0, share)));
    show();
  };
  for (const pair of compare.querySelectorAll(".pair")) {
    for (const picture of pair.querySelectorAll("img")) picture.draggable = false;
    pair.addEventListener("pointerdown", (event) => {
      pair.setPointerCapture(event.pointerId);
      pull(event);
    });
    pair.addEventListener("pointermove", (event) => {
      if (event.buttons) pull(event);
    });
  }

  const choose = (radio) => {
    compare.querySelectorAll(".above").forEach((picture, place) => {
      const source = document.getElementById(`p-${radio.dataset.model}-${place}`);
      picture.src = source.src;
      picture.alt = source.alt;
    });
    end.textContent = radio.dataset.said;
  };
  for (const radio of compare.querySelectorAll("input[type=radio]")) {
    radio.addEventListener("change", () => choose(radio));
    if (radio.checked) choose(radio);
  }
})();
