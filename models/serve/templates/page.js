"use strict";
const SECOND = 1000, AT_ONCE = 20, BESIDE = 1024;  // images of one request that collects; bytes that it has beside each image's own
const at = (id) => document.getElementById(id);
let classes = [], model = "";

function make(tag, { text, name, ...rest } = {}, ...children) {  // text is never markup
  const made = Object.assign(document.createElement(tag), rest);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

async function ask(path, options) {
  let answer;
  try { answer = await fetch(path, options); } catch { throw new Error("the server does not answer"); }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.detail || `the server answered ${answer.status}`);
  return found;
}

const examples = (number, most) => make("div", { name: "examples" }, ...Array.from({ length: Math.min(most, classes[number]?.examples ?? 0) },
  (_, which) => make("img", { src: `/examples/${number}/${which}.png`, alt: `a ${classes[number].name} it learned from`, loading: "lazy" })));

async function showClasses() {
  const [found, health] = await Promise.all([ask("/classes"), ask("/health")]);
  ({ classes, model } = found);
  at("model").textContent = `${health.method}, ${classes.length} classes, run ${model}`
    + (found.known_share === null ? "; it cannot tell that an image is of none of them" : "");
  at("classes").replaceChildren(...classes.map((each, number) => make("li", {}, ...examples(number, 1).children, make("span", { text: each.name }))));
}

// Asking ------------------------------------------------------------------------------------------------------

function rank({ name, probability }) {
  const filled = make("i");
  filled.style.width = `${100 * probability}%`;
  return make("div", { name: "rank" }, make("span", { text: name }), make("div", { name: "bar" }, filled),
    make("b", { text: `${(100 * probability).toFixed(1)} %` }), examples(classes.findIndex((each) => each.name === name), 4));
}

async function show(file) {
  const title = make("h2", { text: file.name }), ranks = make("div", { text: "..." });
  at("answers").prepend(make("section", { name: "answer" }, make("img", { src: URL.createObjectURL(file), alt: "", onerror() { this.style.visibility = "hidden"; } }),
    make("div", {}, title, ranks)));
  try {
    const form = new FormData();
    form.append("image", file);
    const found = await ask("/predict?top=5", { method: "POST", body: form });
    if (found.model !== model) await showClasses();
    const [image] = found.images;
    title.textContent = image.unknown ? "None of the classes it knows" : image.classes[0].name;
    title.classList.toggle("unknown", image.unknown === true);
    ranks.replaceChildren(...(image.unknown ? [make("p", { name: "soft", text: "The nearest ones:" })] : []), ...image.classes.map(rank));
  } catch (error) {
    ranks.replaceChildren(make("p", { name: "error", text: error.message }));
  }
}

async function showAll(files) {
  for (const file of files) await show(file);
}

at("asked").addEventListener("change", (event) => { showAll([...event.target.files]).finally(() => { event.target.value = ""; }); });
for (const [kind, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
  at("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", over);
    if (kind === "drop") showAll([...event.dataTransfer.files]);
  });
}

// Teaching ----------------------------------------------------------------------------------------------------

function showLessons({ waiting, state, seconds, lines }) {
  at("waiting").replaceChildren(...Object.entries(waiting).map(([name, count]) => make("li", { text: `${name}: ${count} images` })));
  at("learn").disabled = state === "running" || !Object.keys(waiting).length;
  at("state").textContent = { idle: "", running: `Learning, ${Math.round(seconds)} s so far.`,
    done: `Learned in ${Math.round(seconds)} s; the new model answers now.`, failed: "It could not be learned; the lines below say why." }[state];
  at("state").classList.toggle("error", state === "failed");
  at("lines").hidden = !lines.length;
  at("lines").textContent = lines.join("\n");
  at("lines").scrollTop = at("lines").scrollHeight;
}

async function follow() {
  for (let found = await ask("/learn"); ; found = await ask("/learn")) {
    showLessons(found);
    if (found.state !== "running") return found.model === model || showClasses();
    await new Promise((done) => setTimeout(done, SECOND));
  }
}

function* batches(files, { bytes, images }) {  // of as many files as one request may hold
  let batch = [], size = 0;
  for (const file of files) {
    const full = batch.length >= Math.min(AT_ONCE, Number(images)) || size + file.size + BESIDE > Number(bytes);
    if (full && batch.length) { yield batch; batch = []; size = 0; }
    batch.push(file);
    size += file.size + BESIDE;
  }
  yield batch;
}

async function collect(event) {
  event.preventDefault();
  const files = [...at("lessons").files], name = at("name").value;
  let sent = 0;
  try {
    for (const batch of batches(files, at("collect").dataset)) {
      at("told").textContent = `${sent} of ${files.length} images are there.`;
      const form = new FormData();
      form.append("class", name);
      batch.forEach((file) => form.append("image", file));
      showLessons(await ask("/collect", { method: "POST", body: form }));
      sent += batch.length;
    }
    at("told").textContent = `${files.length} images of ${name} wait to be learned.`;
    at("told").className = "soft";
    at("collect").reset();
  } catch (error) {
    at("told").textContent = `${sent ? `The first ${sent} images are there; then: ` : ""}${error.message}`;
    at("told").className = "error";
  }
}

const telling = (work) => work.catch((error) => { at("model").textContent = error.message; });
if (at("collect")) {
  at("collect").addEventListener("submit", collect);
  at("learn").addEventListener("click", () => telling(ask("/learn", { method: "POST" }).then(follow)));
  telling(follow());
}
telling(showClasses());
