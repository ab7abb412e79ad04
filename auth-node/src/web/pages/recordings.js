import { call, nameCluster } from "./api.js";
import { onClick, onSubmit, sentence, when } from "./form.js";
import { bytes, canLogOut, lasted, logInFirst, stateMark, whose } from "./session.js";

const element = (id) => document.getElementById(id);
const form = element("filter");
const list = element("recordings");
const more = element("more");
/** What the list is asked for with, and where it goes on. */
let wanted = new URLSearchParams();
let next = "";

function item(recording) {
    const entry = document.createElement("li");
    const about = document.createElement("div");
    const title = document.createElement("a");
    title.href = `/web/recordings/${encodeURIComponent(recording.recording_id)}`;
    title.textContent = whose(recording);
    const details = document.createElement("span");
    details.className = "quiet small";
    const begun = recording.started_at && when(recording.started_at);
    details.textContent = [begun, lasted(recording), bytes(recording.size)].filter(Boolean).join(" · ");
    about.append(title, details);
    entry.append(about, stateMark(recording));
    return entry;
}

/** Adds the next page of the list. */
async function load() {
    const asked = new URLSearchParams(wanted);
    asked.set("page_size", "50");
    if (next) asked.set("page_token", next);
    const { recordings, next_page_token: token } = await call("GET", `/recordings?${asked}`).catch(logInFirst);
    list.append(...recordings.map(item));
    next = token;
    more.hidden = !next;
    const count = list.children.length;
    list.hidden = count === 0;
    element("count").textContent = count
        ? `${count}${next ? " or more" : ""}, the newest first`
        : "There is none that you may see and that is as you ask for.";
    return recordings.length;
}

/** What the form asks for. Times are of the browser's clock. */
function asked() {
    const query = new URLSearchParams();
    for (const [name, text] of new FormData(form)) {
        const value = text.trim();
        if (value) query.set(name, form.elements[name].type === "datetime-local" ? new Date(value).toISOString() : value);
    }
    return query;
}

async function show() {
    [wanted, next] = [asked(), ""];
    list.replaceChildren();
    await load();
}

onSubmit(form, async () => {
    await show();
    element("found").focus();
});

onClick(form, more, async () => {
    const shown = list.children.length;
    await load();
    // Who reads on with the keyboard goes on at the first that is new.
    list.children[shown]?.querySelector("a").focus();
});

canLogOut(element("logout"), (problem) => {
    form.querySelector(".notice").textContent = sentence(problem);
});

// On a phone the fields would stand before the list.
element("narrow").open = window.matchMedia("(min-width: 40rem)").matches;

async function begin() {
    await Promise.all([nameCluster(), call("GET", "/session").catch(logInFirst)]);
    element("page").hidden = false;
    await show().catch((refusal) => {
        form.querySelector(".notice").textContent = sentence(refusal.message);
    });
}

begin().catch((refusal) => {
    element("failed").textContent = sentence(refusal.message);
});
