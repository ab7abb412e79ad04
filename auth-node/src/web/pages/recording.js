import { call, nameCluster, Refusal } from "./api.js";
import { sentence, when } from "./form.js";
import { bytes, lasted, logInFirst, stateMark, whose } from "./session.js";

const element = (id) => document.getElementById(id);
const id = decodeURIComponent(location.pathname.split("/").pop());
const path = `/recordings/${encodeURIComponent(id)}`;
/** So much of a recording is played here; what is longer is for a terminal. */
const MOST = 32 << 20;
/** Longest pause, in seconds, where the recording says no other. */
const IDLE_LIMIT = 2;
let player;

/**
 * What the player makes of markup: its own controls and the shapes of some characters, never anything recorded. The names of
 * its elements, and no others, and nothing that runs.
 */
const ELEMENTS = new Set(
    "bdi br button canvas circle clippath defs div g kbd li line mask p path polygon polyline pre rect span svg ul".split(" "),
);
function markup(text) {
    const names = [...text.matchAll(/<\s*\/?\s*([^\s>/]*)/g)].map(([, name]) => name.toLowerCase());
    if (names.every((name) => ELEMENTS.has(name)) && !/[\s"'/]on\w+\s*=|javascript:|srcdoc/i.test(text)) return text;
    throw new TypeError("the player may not make this markup");
}
window.trustedTypes?.createPolicy("default", { createHTML: markup });

function fact(name, value) {
    if (!value) return [];
    const [term, said] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    said.textContent = value;
    return [term, said];
}

function describe(recording) {
    document.title = `${whose(recording)} · Mezite`;
    element("title").textContent = whose(recording);
    const begun = recording.started_at && when(recording.started_at);
    element("about").textContent = [begun, lasted(recording), bytes(recording.size)].filter(Boolean).join(" · ");
    element("state").replaceChildren(stateMark(recording));
    element("refresh").hidden = recording.state !== "in-progress";
    element("download").href = `/v1/webapi${path}/payload`;
    const labels = Object.entries(recording.labels).map(([key, value]) => `${key}=${value}`).join(", ");
    element("facts").replaceChildren(
        ...fact("Recording", recording.recording_id),
        ...fact("Labels", labels),
        ...fact("Format", recording.format),
        ...fact("SHA-256 of the payload", recording.payload_sha256),
        ...fact("SHA-256 of the manifest", recording.manifest_sha256),
    );
}

/** The beginning of a payload, as text. */
async function payload(size) {
    if (size === 0) return "";
    const last = Math.min(size, MOST) - 1;
    const unreachable = { code: "UNREACHABLE", message: "The recording could not be fetched. Try again." };
    try {
        const response = await fetch(`/v1/webapi${path}/payload`, {
            headers: { Range: `bytes=0-${last}` },
            credentials: "same-origin",
            cache: "no-store",
            redirect: "error",
        });
        if (response.ok) return new TextDecoder().decode(await response.arrayBuffer());
        throw new Refusal(await response.json());
    } catch (problem) {
        throw problem instanceof Refusal ? problem : new Refusal(unreachable);
    }
}

/** What of a text is whole lines: a session that goes on, or broke off, may end in the middle of one. */
function wholeLines(text) {
    const end = text.lastIndexOf("\n") + 1;
    try {
        JSON.parse(text.slice(end));
        return text;
    } catch {
        return text.slice(0, end);
    }
}

/** The first line of an asciicast; nothing where it is none. */
function headerOf(text) {
    try {
        const header = JSON.parse(text.split("\n", 1)[0]);
        return [2, 3].includes(header?.version) ? header : null;
    } catch {
        return null;
    }
}

function play(text, header) {
    player?.dispose();
    player = window.AsciinemaPlayer.create({ data: text }, element("player"), {
        fit: "width",
        preload: true,
        controls: true,
        idleTimeLimit: header.idle_time_limit ?? IDLE_LIMIT,
        poster: "npt:0:01",
    });
}

async function show() {
    const { recording } = await call("GET", path).catch(logInFirst);
    describe(recording);
    element("found").hidden = false;
    element("unplayed").textContent = "";
    element("part").textContent = "";
    const text = wholeLines(await payload(recording.size));
    // Of a session that goes on the first line may be on its way; of another that is no beginning of one.
    if (!text && (recording.size === 0 || recording.state === "in-progress")) {
        element("part").textContent = "Nothing is recorded yet.";
        return;
    }
    const header = headerOf(text);
    if (!header) {
        throw new Refusal({ message: "What was recorded is no terminal session of a kind that is played here. Download it." });
    }
    play(text, header);
    const cut = recording.size > MOST && `This plays the first ${bytes(MOST)}: play all of it with “mezctl recordings play”.`;
    const open = recording.state === "in-progress" && "The session goes on: this is what was recorded so far.";
    element("part").textContent = [open, cut].filter(Boolean).join(" ");
}

/** Says what went wrong: where the recording is, or that there is none. */
function explain(refusal) {
    const none = ["NOT_FOUND", "INVALID_FIELD"].includes(refusal.code);
    element("missing").hidden = !none;
    if (none) element("found").hidden = true;
    else if (element("found").hidden) element("failed").textContent = sentence(refusal.message);
    else element("unplayed").textContent = sentence(refusal.message);
}

element("refresh").addEventListener("click", () => show().catch(explain));

async function begin() {
    await Promise.all([nameCluster(), call("GET", "/session").catch(logInFirst)]);
    element("page").hidden = false;
    await show();
}

begin().catch(explain);
