/* The page around its parts: contents, downloads, large figures, code to copy. */

function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  window.setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function startDownloads() {
  for (const button of document.querySelectorAll("[data-save-csv]")) {
    button.addEventListener("click", () => {
      const { csv } = JSON.parse(document.getElementById(button.dataset.from).textContent);
      save(button.dataset.saveCsv, csv, "text/csv");
    });
  }
  for (const button of document.querySelectorAll("[data-save-image]")) {
    button.addEventListener("click", () => {
      const [head, content] = button.closest("figure").querySelector("img").src.split(",");
      save(button.dataset.saveImage, bytesOf(content), head.slice("data:".length).split(";")[0]);
    });
  }
}

/* A figure in its own size, to be scrolled; Escape closes it. */
function startEnlarging() {
  const dialog = document.createElement("dialog");
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "Close";
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.replaceChildren());
  document.body.append(dialog);
  for (const button of document.querySelectorAll("[data-enlarge]")) {
    button.addEventListener("click", () => {
      const figure = document.getElementById(button.dataset.enlarge);
      const plate = document.createElement("div");
      plate.className = "plate";
      plate.tabIndex = 0;
      plate.append(figure.querySelector("img").cloneNode());
      dialog.setAttribute("aria-label", figure.querySelector("h3").textContent);
      dialog.replaceChildren(close, plate);
      dialog.showModal();
    });
  }
}

/* The clipboard is there in secure pages only; a bucket's page may not be one. */
async function copy(element) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(element.textContent);
    return;
  }
  window.getSelection().selectAllChildren(element);
  document.execCommand("copy");
}

function startCopying() {
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await copy(code);
        button.textContent = "Copied";
      } catch {
        window.getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      window.setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  }
}

/* On a phone the contents are a menu; everywhere they tell which section is being read. */
function startContents() {
  const contents = document.querySelector(".contents");
  const menu = contents.querySelector(".menu");
  const open = (yes) => menu.setAttribute("aria-expanded", String(yes));
  const links = new Map(Array.from(contents.querySelectorAll("a"), (link) => [link.hash.slice(1), link]));
  menu.addEventListener("click", () => open(menu.getAttribute("aria-expanded") !== "true"));
  contents.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    open(false);
    menu.focus();
  });
  links.forEach((link) => link.addEventListener("click", () => open(false)));
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        links.forEach((link) => link.removeAttribute("aria-current"));
        links.get(entry.target.id).setAttribute("aria-current", "location");
      }
    },
    { rootMargin: "-15% 0px -80% 0px" },
  );
  document.querySelectorAll("main > section").forEach((section) => watcher.observe(section));
}

document.documentElement.classList.add("scripted");
startContents();
startDownloads();
startEnlarging();
startCopying();
startTables();
document.querySelectorAll("[data-viewer]").forEach(startViewer);
