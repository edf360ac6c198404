// The page of a report: draws everything from the JSON in #data, in the language chosen. Texts reach the page as text
// nodes and attributes only, never as HTML. What is shown is a function of the part of the address behind «#», so
// every view has an address of its own.
"use strict";
(() => {
  const TEXTS = {
    en: {
      wer: "WER", cer: "CER", exact: "exact match", utterances: "utterances", hours: "hours", intervals: "Small figures: 95 % intervals, of a bootstrap over utterances.",
      manifest: "manifest", together: "together", words: "words", letters: "letters",
      short: { s: "S", d: "D", i: "I" }, one: { s: "substitution", d: "deletion", i: "insertion" },
      many: { s: "substitutions", d: "deletions", i: "insertions" },
      Scores: "Scores", Plots: "Plots", Groups: "Breakdowns", Confusions: "Confusions", Utterances: "Utterances",
      about: "Where this comes from",
      histogram: "Utterances by their own WER", byGroup: (field) => `WER by ${field}`, noErrors: "0", above: "> 100",
      plotHint: "Dots with 95 % intervals; the dashed line is all together. Click to list the utterances.",
      groupsHint: "Click a row to list its utterances.", value: "value", showAll: "show all",
      confusionsHint: "How often, and of how many that were said (inserted: recognised). Click a word to list the utterances.",
      none: "none",
      search: "Search texts, identifiers and paths  ( / )", allManifests: "all manifests", anyErrors: "all utterances",
      withErrors: "with errors", exactOnly: "exact", withAudio: "with audio", field: "any field", anyValue: "any value",
      sort: { errors: "most errors first", rate: "highest WER first", cer: "highest CER first",
        longest: "longest first", shortest: "shortest first", manifest: "as in the manifest" },
      shown: { one: "# utterance", other: "# utterances" }, ofAll: (n) => `of ${n}`, reset: "reset",
      nothing: "No utterance is like that.", play: "Play", details: "details", link: "link to this utterance",
      only: "one utterance", words_: { one: "# word", other: "# words" },
      errorsOf: (errors, words) => `${errors} / ${words}`, errorsTitle: "word errors / words said",
      written: "text in the manifest", path: "audio", place: "line", picture: "log-mel: 0 to 8 kHz, low at the bottom",
      cannotPlay: "This browser cannot play Ogg Opus.", theme: "light or dark", language: "Русский",
      legend: "said above, recognised below", seconds: "s", noText: "(nothing)",
      printed: (n) => `The first ${n} utterances are printed.`, length: "length", notGiven: "not given",
    },
    ru: {
      wer: "WER", cer: "CER", exact: "без ошибок", utterances: "записей", hours: "часов", intervals: "Мелко — интервалы 95 %, бутстреп по записям.",
      manifest: "манифест", together: "вместе", words: "слова", letters: "буквы",
      short: { s: "З", d: "П", i: "В" }, one: { s: "замена", d: "пропуск", i: "вставка" },
      many: { s: "замены", d: "пропуски", i: "вставки" },
      Scores: "Оценки", Plots: "Графики", Groups: "По группам", Confusions: "Что с чем путается", Utterances: "Записи",
      about: "Откуда эти цифры",
      histogram: "Записи по их собственному WER", byGroup: (field) => `WER и ${field}`, noErrors: "0", above: "> 100",
      plotHint: "Точки с интервалами 95 %; пунктир — все записи вместе. Щелчок покажет записи.",
      groupsHint: "Щелчок по строке покажет её записи.", value: "значение", showAll: "показать все",
      confusionsHint: "Сколько раз, и из скольких сказанных (вставленных — распознанных). Щелчок по слову покажет записи.",
      none: "нет",
      search: "Искать в текстах, идентификаторах и путях  ( / )", allManifests: "все манифесты",
      anyErrors: "все записи", withErrors: "с ошибками", exactOnly: "без ошибок", withAudio: "со звуком",
      field: "любое поле", anyValue: "любое значение",
      sort: { errors: "сначала больше ошибок", rate: "сначала выше WER", cer: "сначала выше CER",
        longest: "сначала длинные", shortest: "сначала короткие", manifest: "как в манифесте" },
      shown: { one: "# запись", few: "# записи", many: "# записей", other: "# записи" }, ofAll: (n) => `из ${n}`,
      reset: "сбросить", nothing: "Таких записей нет.", play: "Слушать", details: "подробно",
      link: "ссылка на эту запись", only: "одна запись",
      words_: { one: "# слово", few: "# слова", many: "# слов", other: "# слова" },
      errorsOf: (errors, words) => `${errors} / ${words}`, errorsTitle: "ошибок в словах / слов сказано",
      written: "текст в манифесте", path: "звук", place: "строка", picture: "log-mel: от 0 до 8 кГц, низкие внизу",
      cannotPlay: "Этот браузер не играет Ogg Opus.", theme: "светлая или тёмная", language: "English",
      legend: "сверху сказано, снизу распознано", seconds: "с", noText: "(ничего)",
      printed: (n) => `Напечатаны первые ${n} записей.`, length: "длительность", notGiven: "не указано",
    },
  };
  const UNITS = { _s: { en: "s", ru: "с" }, _m: { en: "m", ru: "м" }, _db: { en: "dB", ru: "дБ" }, _hz: { en: "Hz", ru: "Гц" } };
  const CHUNK = 40; // rows drawn at a time
  const MOST_PRINTED = 300;
  const data = JSON.parse(document.getElementById("data").textContent);
  const groupOf = new Map(data.groups.map((group) => [group.field, group]));

  // --- Small tools -------------------------------------------------------------------------------------------------

  const build = (make) => (name, attributes, ...children) => {
    const element = make(name);
    for (const [key, value] of Object.entries(attributes ?? {})) {
      if (typeof value === "function") element.addEventListener(key, value);
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return element;
  };
  const el = build((name) => document.createElement(name));
  const svg = build((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
  const byId = (id) => document.getElementById(id);

  let state = {};
  let say = TEXTS.en;
  let numbers = {};
  const number = (value, digits = 0) => {
    numbers[digits] ??= new Intl.NumberFormat(language(), { minimumFractionDigits: digits, maximumFractionDigits: digits });
    return numbers[digits].format(value);
  };
  const percent = (rate, digits = 1) => (rate === null ? "–" : `${number(100 * rate, digits)}\u00a0%`);
  const interval = ([, low, high]) => (low === null ? "" : `${number(100 * low, 1)} … ${number(100 * high, 1)}`);
  const plural = (forms, count) =>
    (forms[new Intl.PluralRules(language()).select(count)] ?? forms.other).replace("#", number(count));
  const language = () => (TEXTS[state.lang] ? state.lang : data.lang);
  const nameOf = (field) => (field === "length" ? say.length : field);
  const labelOf = (label) => (label === "not given" ? say.notGiven : label);
  const unitOf = (field) => UNITS[field === "length" ? "_s" : /_[a-z]+$/.exec(field)?.[0]]?.[language()] ?? "";
  const withUnit = (field) => (unitOf(field) ? `${nameOf(field)}, ${unitOf(field)}` : nameOf(field));

  // --- Rows --------------------------------------------------------------------------------------------------------

  const row = (values, index) => {
    const [manifest, where, id, duration, said, given, steps, letters, errors, length, letterErrors, letterLength, written,
      path, media, fields] = values;
    const line = Number(where.slice(where.lastIndexOf(":") + 1));
    return { index, manifest, where, line, id, duration, said, given, steps, letters, errors, length, written, path, media,
      fields, rate: errors / Math.max(length, 1), cer: letterErrors / Math.max(letterLength, 1),
      key: `${data.manifests[manifest].name}:${line}`, player: null };
  };
  const rows = data.rows.map(row);
  const simplified = (text) => text.toLowerCase().replaceAll("ё", "е");
  for (const one of rows) one.haystack = simplified([one.said, one.given, one.id, one.path, one.written].join("\n"));

  /** Pairs [said, recognised, letters] of a row; null where there is none, letters only of substitutions. */
  function pairs(one) {
    const said = one.said ? one.said.split(" ") : [];
    const given = one.given ? one.given.split(" ") : [];
    const letters = one.letters ? one.letters.split(" ") : [];
    let [i, j, k] = [0, 0, 0];
    return [...one.steps].map((step) => {
      if (step === "d") return ["d", said[i++], null];
      if (step === "i") return ["i", null, given[j++]];
      return [step, said[i++], given[j++], step === "s" ? letters[k++] : null];
    });
  }

  /** Two spans of letters, those that differ marked. */
  function differing(said, given, steps) {
    const [first, second] = [Array.from(said), Array.from(given)];
    const spans = [[], []];
    const add = (side, letter, differs) => {
      const last = spans[side].at(-1);
      if (last && last.differs === differs) last.text += letter;
      else spans[side].push({ text: letter, differs });
    };
    let [i, j] = [0, 0];
    for (const step of steps) {
      if (step !== "i") add(0, first[i++], step !== "=");
      if (step !== "d") add(1, second[j++], step !== "=");
    }
    return spans.map((side) => side.map(({ text, differs }) => (differs ? el("b", {}, text) : text)));
  }

  function aligned(one) {
    const line = el("p", { class: "aligned", lang: "ru" });
    for (const [step, said, given, letters] of pairs(one)) {
      if (step === "=") {
        line.append(el("span", { class: "pair" }, el("span", { class: "said" }, said), el("span", { class: "given" }, given)));
        continue;
      }
      const [above, below] = step === "s" ? differing(said, given, letters) : [[said ?? "—"], [given ?? "—"]];
      line.append(
        el("span", { class: `pair ${step}`, title: say.one[step] },
          el("span", { class: step === "i" ? "said none" : "said" }, above),
          el("span", { class: step === "d" ? "given none" : "given" }, below),
          el("span", { class: "kind", "aria-hidden": "true" }, say.short[step]),
          el("span", { class: "spoken" }, ` (${say.one[step]}) `)),
      );
    }
    if (!one.steps) line.append(el("span", { class: "pair" }, el("span", { class: "said none" }, say.noText)));
    return line;
  }

  /** The base64 of a sound or picture, which stands behind this script and may not have been read yet. */
  async function media(kind, index) {
    const id = kind + index;
    if (!byId(id) && document.readyState === "loading")
      await new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
    return byId(id).textContent;
  }

  async function play(one, box, at = 0) {
    if (!one.player) {
      const encoded = await media("a", one.index);
      const sound = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
      if (one.player) return;
      const player = el("audio", { controls: true, preload: "auto" });
      one.player = player;
      player.src = URL.createObjectURL(new Blob([sound], { type: "audio/ogg; codecs=opus" }));
      const cursor = box.querySelector(".cursor");
      const move = () => {
        cursor.style.left = `${(100 * player.currentTime) / (player.duration || 1)}%`;
        if (!player.paused) requestAnimationFrame(move);
      };
      player.addEventListener("play", () => {
        for (const other of rows) if (other.player && other !== one) other.player.pause();
        cursor.hidden = false;
        move();
      });
      player.addEventListener("seeked", move);
      player.addEventListener("error", () => player.replaceWith(el("span", { class: "problem" }, say.cannotPlay)));
      const button = box.querySelector("button.play");
      const hadFocus = document.activeElement === button;
      button.replaceWith(player);
      if (hadFocus) player.focus();
    }
    one.player.currentTime = at;
    await one.player.play().catch(() => {});
  }

  function sound(one) {
    const box = el("div", { class: "sound" });
    if (typeof one.media === "string") return el("p", { class: "problem" }, one.media);
    if (!one.media) return null;
    const picture = el("img", { alt: say.picture, title: say.picture });
    media("p", one.index).then((encoded) => (picture.src = `data:image/png;base64,${encoded}`));
    const strip = el("div", {
      class: "strip",
      click: (event) => {
        const place = strip.getBoundingClientRect();
        play(one, box, (one.duration * (event.clientX - place.left)) / place.width);
      },
    }, picture, el("span", { class: "cursor", hidden: true }));
    strip.style.width = `min(100%, ${Math.max(one.duration, 1) * 6}em)`;
    box.append(strip, one.player ??
      el("button", { class: "play", type: "button", click: () => play(one, box) },
        el("span", { "aria-hidden": "true" }, "▶ "), `${say.play} ${number(one.duration, 1)}\u00a0${say.seconds}`));
    return box;
  }

  function chips(one) {
    return data.fields.map((field, place) => {
      const value = one.fields[place];
      if (value === null || value === undefined) return null;
      const text = typeof value === "number" ? String(value).replace(".", language() === "ru" ? "," : ".") : String(value);
      const unit = unitOf(field);
      return el("span", { class: "chip" }, `${field} `, el("b", {}, unit ? `${text}\u00a0${unit}` : text));
    });
  }

  function drawRow(one) {
    const name = data.manifests[one.manifest].name;
    const rank = one.index + 1;
    const details = el("details", {}, el("summary", {}, say.details));
    details.addEventListener("toggle", () => {
      if (details.childElementCount > 1) return;
      const facts = [[say.written, one.written], [say.path, one.path], [say.place, one.where]];
      details.append(el("dl", {}, facts.map(([what, text]) => [el("dt", {}, what), el("dd", {}, text)])));
    });
    return el("article", { class: one.errors ? "row" : "row right", "data-key": one.key },
      el("header", {},
        el("span", { class: "rank" }, number(rank)),
        el("b", { class: "id" }, one.id),
        data.manifests.length > 1 ? el("span", { class: "chip set" }, name) : null,
        el("span", { class: "figure", title: say.errorsTitle }, say.errorsOf(number(one.errors), plural(say.words_, one.length))),
        el("span", { class: "figure" }, `${say.wer} `, el("b", {}, percent(one.rate))),
        el("span", { class: "figure" }, `${say.cer} `, el("b", {}, percent(one.cer))),
        el("span", { class: "figure" }, `${number(one.duration, 1)}\u00a0${say.seconds}`),
        el("a", { class: "link", href: address({ u: one.key }, true), title: say.link, "aria-label": say.link }, "#")),
      aligned(one), sound(one),
      el("footer", {}, chips(one), details));
  }

  // --- Which rows, in which order ----------------------------------------------------------------------------------

  const has = {
    q: (one, text) => simplified(text).split(/\s+/).every((word) => one.haystack.includes(word)),
    m: (one, name) => data.manifests[one.manifest].name === name,
    s: (one, which) => (which === "exact" ? one.errors === 0 : which === "audio" ? one.media === 1 : one.errors > 0),
    u: (one, key) => one.key === key,
    g: (one, group) => {
      const cut = group.indexOf("=");
      const known = groupOf.get(group.slice(0, cut));
      return known !== undefined && known.of[one.index] === known.rows.findIndex(({ label }) => label === group.slice(cut + 1));
    },
    c: (one, confusion) => pairs(one).some(([step, said, given]) => step !== "=" && `${said ?? ""}>${given ?? ""}` === confusion),
    w: (one, place) => place === String(bin(one)),
  };
  const orders = {
    errors: (a, b) => a.index - b.index,
    rate: (a, b) => b.rate - a.rate || a.index - b.index,
    cer: (a, b) => b.cer - a.cer || a.index - b.index,
    longest: (a, b) => b.duration - a.duration || a.index - b.index,
    shortest: (a, b) => a.duration - b.duration || a.index - b.index,
    manifest: (a, b) => a.manifest - b.manifest || a.line - b.line,
  };
  /** The bar of the histogram: 0 without errors, 1 to 10 by tenths, 11 above 100 %. */
  const bin = (one) => (one.errors === 0 ? 0 : one.errors > one.length ? 11 : Math.ceil((10 * one.errors) / Math.max(one.length, 1)));

  let listed = [];
  let drawn = 0;
  const list = byId("list");

  function select() {
    const filters = Object.entries(has).filter(([key]) => state[key]);
    listed = rows.filter((one) => filters.every(([key, test]) => test(one, state[key])));
    listed.sort(orders[state.o] ?? orders.errors);
    for (const one of rows) if (one.player && !listed.includes(one)) one.player.pause();
    list.replaceChildren();
    drawn = 0;
    drawMore();
    watchEnd();
    byId("count").replaceChildren(
      el("b", {}, plural(say.shown, listed.length)),
      listed.length < rows.length ? ` ${say.ofAll(number(rows.length))}` : "");
    if (!listed.length) list.append(el("p", { class: "muted" }, say.nothing));
  }

  // More rows are drawn when the end of the list comes near. It is watched anew after each drawing, for what stays near,
  // as where one scrolls on meanwhile, is told of only once.
  const nearEnd = new IntersectionObserver((entries) => {
    if (entries.at(-1).isIntersecting && drawn < listed.length) {
      drawMore();
      watchEnd();
    }
  }, { rootMargin: "1500px" });

  function watchEnd() {
    nearEnd.unobserve(byId("more"));
    nearEnd.observe(byId("more"));
  }

  function drawMore(count = CHUNK) {
    list.append(...listed.slice(drawn, drawn + count).map(drawRow));
    drawn = Math.min(drawn + count, listed.length);
  }

  // --- Controls ----------------------------------------------------------------------------------------------------

  const address = (changes, alone = false) => {
    const kept = alone ? (state.lang ? { lang: state.lang } : {}) : state;
    const parameters = new URLSearchParams();
    for (const [key, value] of Object.entries({ ...kept, ...changes })) if (value) parameters.set(key, value);
    return `#${parameters}`;
  };

  function go(changes, scroll = false) {
    history.replaceState(null, "", address(changes));
    read();
    if (scroll) byId("Utterances").scrollIntoView();
  }

  function option(value, text) {
    return el("option", { value }, text);
  }

  function drawControls() {
    const [field] = (state.g ?? "").split("=", 1);
    const put = (id, key, options) => {
      const select = byId(id);
      select.replaceChildren(...options);
      select.value = key;
      if (select.selectedIndex < 0) select.selectedIndex = 0;
    };
    byId("search").placeholder = say.search;
    byId("search").setAttribute("aria-label", say.search);
    put("manifest", state.m ?? "", [option("", say.allManifests), ...data.manifests.map(({ name }) => option(name, name))]);
    byId("manifest").hidden = data.manifests.length < 2;
    put("status", state.s ?? "", [option("", say.anyErrors), option("errors", say.withErrors), option("exact", say.exactOnly),
      option("audio", say.withAudio)]);
    put("field", field, [option("", say.field), ...data.groups.map(({ field: name }) => option(name, withUnit(name)))]);
    byId("field").hidden = !data.groups.length;
    put("value", state.g ?? "", [option("", say.anyValue),
      ...(groupOf.get(field)?.rows ?? []).map(({ label }) => option(`${field}=${label}`, labelOf(label)))]);
    byId("value").hidden = !groupOf.has(field);
    put("order", state.o ?? "errors", Object.entries(say.sort).map(([key, text]) => option(key, text)));
    for (const [id, what] of [["manifest", say.manifest], ["status", say.wer], ["field", say.field], ["value", say.value], ["order", say.sort.errors]])
      byId(id).setAttribute("aria-label", what);
    const tags = byId("tags");
    tags.replaceChildren();
    const tag = (key, text) => tags.append(
      el("button", { type: "button", class: "tag", click: () => go({ [key]: "" }) }, text, el("span", { "aria-hidden": "true" }, " ✕")));
    if (state.u) tag("u", `${say.only}: ${state.u}`);
    if (state.c) tag("c", state.c.replace(">", " → ").replace(/^ → /, "+ ").replace(/ → $/, " → –"));
    if (state.w) tag("w", `${say.wer} ${binLabel(Number(state.w))} %`);
    if (Object.keys(has).some((key) => state[key]))
      tags.append(el("button", { type: "button", class: "tag quiet", click: reset }, say.reset));
  }

  function reset() {
    byId("search").value = "";
    go(Object.fromEntries(Object.keys(has).map((key) => [key, ""])));
  }

  // --- Figures above the list --------------------------------------------------------------------------------------

  const table = (headings, lines, kind = "") =>
    el("div", { class: "wide" }, el("table", { class: kind },
      el("thead", {}, el("tr", {}, headings.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, lines)));
  const cell = (text) => el("td", { class: "number" }, text);
  const rated = (rate) => el("td", { class: "number" }, el("b", {}, percent(rate[0])), el("small", {}, interval(rate)));

  function drawScores() {
    const whole = data.together;
    const card = (name, rate) =>
      el("div", { class: "card" }, el("span", {}, name), el("strong", {}, percent(rate[0])), el("small", {}, interval(rate)));
    const plain = (name, text) => el("div", { class: "card" }, el("span", {}, name), el("strong", {}, text), el("small", {}, "\u00a0"));
    byId("cards").replaceChildren(card(say.wer, whole.wer), card(say.cer, whole.cer), card(say.exact, whole.exact_rate),
      plain(say.utterances, number(whole.utterances)), plain(say.hours, number(whole.hours, 2)));
    const headings = [say.manifest, say.wer, say.cer, say.exact, say.words, ...Object.values(say.many),
      say.utterances, say.hours];
    const line = (score, name, mark) => el("tr", { class: mark },
      el("th", { scope: "row" }, name), rated(score.wer), rated(score.cer), rated(score.exact_rate), cell(number(score.words[3])),
      ...score.words.slice(0, 3).map((count) => cell(number(count))), cell(number(score.utterances)),
      cell(number(score.hours, 2)));
    const lines = data.manifests.map((score) => line(score, score.name, ""));
    if (data.manifests.length > 1) lines.push(line(whole, say.together, "sum"));
    byId("scores").replaceChildren(table(headings, lines, "scores"),
      el("p", { class: "muted hint" }, say.intervals));
    byId("about").replaceChildren(el("summary", {}, say.about),
      el("dl", {}, data.about.map(([what, text]) => [el("dt", {}, what), el("dd", {}, text)])));
  }

  const binLabel = (place) =>
    place === 0 ? say.noErrors : place === 11 ? say.above : `${10 * place - 10}–${10 * place}`;

  /** Round numbers from 0 to at least `top`, four to eight of them. */
  function ticks(top) {
    const power = 10 ** Math.floor(Math.log10(top || 1));
    const step = [0.2, 0.25, 0.5, 1, 2].map((part) => part * power).find((size) => top / size <= 6) ?? power;
    const count = Math.max(1, Math.ceil(top / step - 1e-9));
    return Array.from({ length: count + 1 }, (_, place) => place * step);
  }

  /** Axes of a plot with a column for each label; `draw(x, y, place, step)` gives what stands in a column. */
  function plot(title, labels, top, format, under, draw, extra = () => []) {
    const [width, height, left, bottom, above] = [460, 240, 46, 42, 10];
    const marks = ticks(top);
    const y = (value) => height - bottom - ((height - bottom - above) * value) / marks.at(-1);
    const step = (width - left - 6) / labels.length;
    const x = (place) => left + step * (place + 0.5);
    const tilted = labels.some((label) => label.length * 6.6 > step);
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title },
      marks.map((mark) => [svg("line", { class: "grid", x1: left, x2: width - 6, y1: y(mark), y2: y(mark) }),
        svg("text", { x: left - 6, y: y(mark) + 4, "text-anchor": "end" }, format(mark))]),
      labels.map((label, place) => svg("text", tilted
        ? { transform: `translate(${x(place) + 3} ${height - bottom + 14}) rotate(-28)`, "text-anchor": "end" }
        : { x: x(place), y: height - bottom + 16, "text-anchor": "middle" }, label)),
      extra(y, left, width - 6),
      labels.map((_, place) => draw(x(place), y, place, step)));
    return el("figure", {}, el("figcaption", {}, title), drawing, el("p", { class: "under" }, under));
  }

  function press(action) {
    return { tabindex: 0, role: "button", class: "press", click: action,
      keydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); action(); } } };
  }

  function drawPlots() {
    const counts = Array(12).fill(0);
    for (const one of rows) counts[bin(one)] += 1;
    const bars = plot(say.histogram, counts.map((_, place) => binLabel(place)), Math.max(...counts, 1), (mark) => number(mark),
      `${say.wer}, %`, (x, y, place, step) => svg("g", press(() => go({ w: String(place), u: "" }, true)),
        svg("title", {}, `${binLabel(place)} %: ${plural(say.shown, counts[place])}`),
        svg("rect", { class: "area", x: x - step / 2, y: y.top ?? 10, width: step, height: 188 }),
        svg("rect", { class: place ? "bar" : "bar right", x: x - step * 0.38, width: step * 0.76, y: y(counts[place]),
          height: y(0) - y(counts[place]), rx: 2 }),
        counts[place] ? svg("text", { class: "value", x, y: y(counts[place]) - 4, "text-anchor": "middle" }, number(counts[place])) : null));
    const figures = data.groups.filter(({ is_number }) => is_number).map(({ field, rows: groups }) => {
      const top = Math.max(...groups.map(({ wer }) => Math.max(wer[0], Math.min(wer[2] ?? 0, 1.5 * wer[0] + 0.1))), data.together.wer[0]);
      return plot(say.byGroup(nameOf(field)), groups.map(({ label }) => labelOf(label)), 100 * top, (mark) => number(mark), withUnit(field),
        (x, y, place, step) => {
          const { label, wer, utterances } = groups[place];
          const text = `${labelOf(label)}: ${percent(wer[0])} (${interval(wer)}), ${plural(say.shown, utterances)}`;
          return svg("g", press(() => go({ g: `${field}=${label}`, u: "" }, true)), svg("title", {}, text),
            svg("rect", { class: "area", x: x - step / 2, y: 10, width: step, height: 188 }),
            wer[1] === null ? null : svg("path", { class: "whisker",
              d: `M${x} ${y(100 * wer[1])}V${Math.max(y(100 * wer[2]), 4)}m-5 0h10M${x - 5} ${y(100 * wer[1])}h10` }),
            svg("circle", { class: "dot", cx: x, cy: y(100 * wer[0]), r: 5 }));
        },
        (y, left, right) => [svg("line", { class: "mean", x1: left, x2: right, y1: y(100 * data.together.wer[0]), y2: y(100 * data.together.wer[0]) })]);
    });
    byId("plots").replaceChildren(bars, ...figures);
    byId("plotHint").textContent = say.plotHint;
  }

  function drawGroups() {
    const most = Math.max(0.01, ...data.groups.flatMap(({ rows: groups }) => groups.map(({ wer }) => Math.min(wer[0], 1.5))));
    byId("groups").replaceChildren(...data.groups.map(({ field, rows: groups }) => {
      const line = ({ label, utterances, wer, cer, exact_rate }) => {
        const bar = el("span", { class: "meter" }, el("span", {}));
        bar.firstChild.style.width = `${Math.min(100, (100 * wer[0]) / most)}%`;
        return el("tr", {},
          el("th", { scope: "row" }, el("button", { type: "button", class: "plain", click: () => go({ g: `${field}=${label}`, u: "" }, true) }, labelOf(label))),
          cell(number(utterances)), el("td", { class: "number" }, el("b", {}, percent(wer[0])), el("small", {}, interval(wer)), bar),
          cell(percent(cer[0])), cell(percent(exact_rate[0])));
      };
      const short = groups.length > 12;
      const body = groups.slice(0, short ? 10 : undefined).map(line);
      const box = el("section", { class: "group" }, el("h3", {}, withUnit(field)),
        table([say.value, say.utterances, say.wer, say.cer, say.exact], body));
      if (short)
        box.append(el("button", { type: "button", class: "tag quiet", click: (event) => {
          box.querySelector("tbody").append(...groups.slice(10).map(line));
          event.target.remove();
        } }, `${say.showAll} (${number(groups.length)})`));
      return box;
    }));
    byId("Groups").hidden = !data.groups.length;
    byId("groupsHint").textContent = say.groupsHint;
  }

  function drawConfusions() {
    const boxes = [];
    for (const unit of ["words", "letters"]) {
      for (const kind of ["s", "d", "i"]) {
        const found = data.confusions[unit][kind];
        const most = found.length ? found[0][2] : 1;
        const shown = (text) => (text === " " ? "␣" : text);
        const lines = found.map(([said, given, count, total]) => {
          const bar = el("span", { class: "meter" }, el("span", {}));
          bar.firstChild.style.width = `${(100 * count) / most}%`;
          const text = kind === "s" ? [shown(said), el("span", { class: "muted" }, " → "), shown(given)] : [shown(said || given)];
          const name = unit === "words"
            ? el("button", { type: "button", class: "plain", click: () => go({ c: `${said}>${given}`, u: "" }, true) }, text)
            : el("span", {}, text);
          return el("tr", {}, el("td", { lang: "ru" }, name), el("td", { class: "number" }, el("b", {}, number(count)), el("small", {}, `/ ${number(total)}`), bar));
        });
        boxes.push(el("section", { class: `group ${kind}` }, el("h3", {}, `${say[unit]}: ${say.many[kind]}`),
          lines.length ? el("table", {}, el("tbody", {}, lines)) : el("p", { class: "muted" }, say.none)));
      }
    }
    byId("confusions").replaceChildren(...boxes);
    byId("confusionsHint").textContent = say.confusionsHint;
  }

  function drawTexts() {
    document.documentElement.lang = language();
    for (const heading of document.querySelectorAll("[data-text]")) heading.textContent = say[heading.dataset.text];
    byId("theme").title = say.theme;
    byId("theme").setAttribute("aria-label", say.theme);
    byId("language").textContent = say.language;
    byId("legend").replaceChildren(...["s", "d", "i"].map((step) =>
      el("span", { class: `key ${step}` }, el("b", {}, say.short[step]), ` ${say.one[step]}`)), `  ${say.legend}`);
  }

  // --- From the address to the page --------------------------------------------------------------------------------

  let drawnLanguage = null;
  function read() {
    state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    if (drawnLanguage !== language()) {
      drawnLanguage = language();
      say = TEXTS[drawnLanguage];
      numbers = {};
      drawTexts();
      drawScores();
      drawPlots();
      drawGroups();
      drawConfusions();
    }
    if (document.activeElement !== byId("search")) byId("search").value = state.q ?? "";
    drawControls();
    select();
  }

  byId("search").addEventListener("input", (event) => go({ q: event.target.value, u: "" }));
  for (const [id, key] of [["manifest", "m"], ["status", "s"], ["order", "o"], ["value", "g"]])
    byId(id).addEventListener("change", (event) => go({ [key]: event.target.value, u: "" }));
  byId("field").addEventListener("change", (event) => {
    const group = groupOf.get(event.target.value);
    go({ g: group ? `${group.field}=${group.rows[0].label}` : "", u: "" });
  });
  byId("language").addEventListener("click", () => go({ lang: language() === "en" ? "ru" : "en" }));
  byId("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
  for (const link of document.querySelectorAll("nav a"))
    link.addEventListener("click", (event) => {
      event.preventDefault();
      byId(link.getAttribute("href").slice(1)).scrollIntoView({ behavior: "smooth" });
    });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      byId("search").focus();
    }
  });
  addEventListener("hashchange", () => {
    read();
    if (state.u) byId("Utterances").scrollIntoView();
  });
  addEventListener("beforeprint", () => {
    drawMore(Math.max(0, MOST_PRINTED - drawn));
    byId("printed").textContent = listed.length > drawn ? say.printed(number(drawn)) : "";
  });
  read();
  if (state.u) byId("Utterances").scrollIntoView();
  performance.mark("kvarts-shown");
})();
