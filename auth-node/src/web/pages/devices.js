import { call, nameCluster, Refusal } from "./api.js";
import { day, onSubmit, sentence, when } from "./form.js";
import * as passkey from "./passkey.js";
import { canLogOut, logInFirst, pageAskedFor } from "./session.js";

const element = (id) => document.getElementById(id);
const form = element("add");
const { name } = form.elements;
const dialog = element("remove");
/** What the cluster says of itself. */
let cluster = {};

/** Why nobody with this session adds a passkey by this page; empty where one may. */
function whyNoneIsAdded(session) {
    if (session.method === "sso") return "You log in by single sign-on: what else it takes is asked for by your provider.";
    if (cluster.passkeys === false) return "Passkeys are not set up in this cluster.";
    if (!passkey.supported) return "This browser knows no passkeys: to add one, take another browser.";
    return "";
}

/** Says what went wrong or well with a device, where it is looked for. */
function tell(good, bad = "") {
    element("said").textContent = good;
    form.querySelector(".notice.bad").textContent = bad && sentence(bad);
}

function item(device) {
    const entry = document.createElement("li");
    const about = document.createElement("div");
    const title = document.createElement("strong");
    title.textContent = device.name;
    const used = device.last_used_at ? `last used ${day(device.last_used_at)}` : "not used yet";
    const times = document.createElement("span");
    times.className = "quiet small";
    // Where it is of the cluster's domain, that goes without saying.
    const other = device.relying_party_id !== cluster.relying_party_id;
    const kind = `${device.passkey ? "Passkey" : "Security key"}${other ? ` for ${device.relying_party_id}` : ""}`;
    times.textContent = `${kind}, added ${day(device.created_at)}, ${used}`;
    about.append(title, times);
    const button = document.createElement("button");
    button.type = "button";
    button.className = "danger";
    button.textContent = "Remove";
    button.setAttribute("aria-label", `Remove ${device.name}`);
    button.addEventListener("click", () => remove(device));
    entry.append(about, button);
    return entry;
}

async function load() {
    const { devices } = await call("GET", "/devices").catch(logInFirst);
    element("devices").replaceChildren(...devices.map(item));
    element("devices").hidden = devices.length === 0;
    element("none").hidden = devices.length > 0 || !element("none-to-add").hidden;
}

/** Whether the person in front of the page says yes. */
function confirmed(device) {
    element("remove-name").textContent = device.name;
    dialog.returnValue = "keep";
    dialog.showModal();
    return new Promise((resolve) => {
        dialog.addEventListener("close", () => resolve(dialog.returnValue === "remove"), { once: true });
    });
}

async function remove(device) {
    if (!(await confirmed(device))) return;
    try {
        await call("DELETE", `/devices/${encodeURIComponent(device.id)}`).catch(logInFirst);
        await load();
        tell(`${device.name} was removed.`);
    } catch (refusal) {
        tell("", refusal.message);
    }
    element("devices-title").focus();
}

onSubmit(form, async () => {
    tell("");
    if (!name.value.trim()) {
        throw new Refusal({ code: "MISSING", field: "name", message: "Give the device a name." });
    }
    const { challenge_id, options } = await call("POST", "/devices/begin", { passkey: true }).catch(logInFirst);
    const credential = await passkey.create(options);
    const { device } = await call("POST", "/devices/finish", { challenge_id, credential, name: name.value.trim() });
    name.value = "";
    element("welcome").hidden = true;
    await load();
    tell(`${device.name} was added. From the next login on you can use it.`);
});

canLogOut(element("logout"), (problem) => tell("", problem));

async function begin() {
    const asked = [call("GET", "/session").catch(logInFirst), nameCluster()];
    const [{ session, roles }, ping] = await Promise.all(asked);
    // A provider sends everybody here who logs in by it.
    const page = pageAskedFor();
    if (page !== location.pathname) {
        location.replace(page);
        return;
    }
    cluster = ping;
    element("user").textContent = session.user;
    element("until").textContent = when(session.expires_at);
    element("roles").textContent = roles.length ? roles.join(", ") : "none";
    const why = whyNoneIsAdded(session);
    element("none-to-add").textContent = why;
    element("none-to-add").hidden = !why;
    for (const part of form.querySelectorAll(".field, button")) part.hidden = !!why;
    element("welcome").hidden = location.hash !== "#new" || !!why;
    history.replaceState(null, "", location.pathname);
    element("page").hidden = false;
    await load().catch((refusal) => tell("", refusal.message));
}

begin().catch((refusal) => {
    element("failed").textContent = sentence(refusal.message);
});
