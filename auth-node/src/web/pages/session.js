// What the pages share that are for somebody who is logged in.

import { call } from "./api.js";

/** Under which this tab remembers the page that was asked for without a session. */
const ASKED_FOR = "asked-for";
const HOME = "/web/devices";

/** Where whoever has logged in goes: once, to the page that was asked for before. */
export function pageAskedFor() {
    const page = sessionStorage.getItem(ASKED_FOR) ?? HOME;
    sessionStorage.removeItem(ASKED_FOR);
    return /^\/web\/recordings(\/[0-9a-f-]+)?$/.test(page) ? page : HOME;
}

/** Without a session there is nothing here: what waits for an answer waits until the page is left. */
export function logInFirst(refusal) {
    if (refusal.code !== "UNAUTHENTICATED") throw refusal;
    sessionStorage.setItem(ASKED_FOR, location.pathname);
    location.replace("/web/login");
    return new Promise(() => {});
}

/** Has a button log out. Where the cluster cannot be asked to, `tell` is told. */
export function canLogOut(button, tell) {
    button.addEventListener("click", async () => {
        try {
            await call("POST", "/logout");
        } catch (refusal) {
            if (refusal.code === "UNREACHABLE") {
                tell(refusal.message);
                return;
            }
            // Whatever it was, the cluster has had the browser forget the session.
        }
        location.replace("/web/login");
    });
}

const STATES = {
    "in-progress": "In progress",
    complete: "Complete",
    interrupted: "Interrupted",
    truncated: "Cut at the size limit",
};

/** How a recording stands, in a mark of its own. */
export function stateMark(recording) {
    const mark = document.createElement("span");
    mark.className = `mark ${recording.state}`;
    mark.textContent = STATES[recording.state] ?? recording.state;
    return mark;
}

/** How long a session lasted; empty while that is not known. */
export function lasted({ started_at: from, ended_at: to }) {
    if (!from || !to) return "";
    const seconds = Math.max(0, Math.round((new Date(to) - new Date(from)) / 1000));
    const parts = [[Math.floor(seconds / 3600), "h"], [Math.floor(seconds / 60) % 60, "min"], [seconds % 60, "s"]];
    const said = parts.filter(([count]) => count > 0).slice(0, 2);
    return said.map(([count, unit]) => `${count} ${unit}`).join(" ") || "0 s";
}

/** A number of bytes, as people write it. */
export function bytes(count) {
    const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, count)) / 10));
    const value = count / 1024 ** power;
    return `${power && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[power]}`;
}

/** Whose session it is: `alice as root on web1`. */
export function whose({ user, login, node }) {
    return [user || "somebody", login && `as ${login}`, node && `on ${node}`].filter(Boolean).join(" ");
}
