"use strict";
// The only script of the page: filters, the address's #parameters that set them, unfolding for print, the download.
(() => {
  const forms = [...document.querySelectorAll("form[data-list]")];
  const words = (text) => text.normalize("NFKC").toLowerCase().replace(/\s+/g, " ");

  const lists = forms.map((form) => {
    const cards = [...document.querySelectorAll(`#${form.dataset.list}-list > article`)];
    const texts = cards.map((card) => words(card.textContent));
    const shown = form.querySelector("output");
    const empty = document.getElementById(`${form.dataset.list}-empty`);
    const apply = () => {
      const wanted = words(form.elements.namedItem(form.dataset.query).value.trim());
      const picks = [...form.querySelectorAll("select")].filter((select) => select.value);
      let visible = 0;
      cards.forEach((card, index) => {
        const match =
          texts[index].includes(wanted) && picks.every((pick) => card.dataset[pick.dataset.field] === pick.value);
        card.hidden = !match;
        visible += match ? 1 : 0;
      });
      shown.textContent = `${visible} of ${cards.length} shown`;
      empty.hidden = visible > 0;
    };
    return { form, apply };
  });

  const controls = () => forms.flatMap((form) => [...form.elements].filter((control) => control.name));

  const remember = () => {
    const set = controls().filter((control) => control.value);
    const state = new URLSearchParams(set.map((control) => [control.name, control.value])).toString();
    history.replaceState(null, "", state ? `#${state}` : location.pathname + location.search);
  };

  const recall = () => {
    const state = new URLSearchParams(location.hash.slice(1));
    if (![...state.values()].some(Boolean)) return; // an ordinary #section
    for (const control of controls()) control.value = state.get(control.name) ?? "";
    lists.forEach(({ apply }) => apply());
    const set = forms.find((form) => [...form.elements].some((control) => control.name && control.value));
    set?.closest("section").scrollIntoView();
  };

  for (const { form, apply } of lists) {
    form.hidden = false;
    let waiting = 0;
    form.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => (apply(), remember()), 80);
    });
    form.addEventListener("reset", () => setTimeout(() => (apply(), remember())));
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }
  addEventListener("hashchange", recall);
  recall();

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details.printed:not([open])")];
    folded.forEach((details) => (details.open = true));
  });
  addEventListener("afterprint", () => folded.forEach((details) => (details.open = false)));

  const button = document.getElementById("download");
  button.hidden = false;
  button.addEventListener("click", () => {
    const numbers = document.getElementById("numbers").textContent;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([numbers], { type: "application/json" }));
    link.download = "numbers.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href));
  });
})();
