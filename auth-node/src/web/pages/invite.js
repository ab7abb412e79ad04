import { call, nameCluster, Refusal } from "./api.js";
import { canBeShown, onSubmit } from "./form.js";

/** What a link was damaged into is no invite. */
function decoded(text) {
    try {
        return decodeURIComponent(text);
    } catch {
        return "";
    }
}

// The secret is behind the # and so never sent with the address. It goes from the address bar and the history at once.
const fragment = location.hash.slice(1);
history.replaceState(null, "", location.pathname);
const secret = decoded(fragment);
// A page that is there already is not loaded anew for what is behind the `#`.
addEventListener("hashchange", () => location.reload());

const form = document.getElementById("invite");
const { password, again } = form.elements;

function show(id) {
    for (const part of document.querySelectorAll("main > section")) part.hidden = part.id !== id;
    document.querySelector(`#${id} h1`).focus();
}

/** The password is set; who cannot go on from here by itself is told how. */
async function logIn(user) {
    try {
        const answer = await call("POST", "/login", { username: user, password: password.value });
        if (!answer.step_up) {
            location.replace("/web/devices#new");
            return;
        }
    } catch {
        // The login page says why.
    }
    document.getElementById("user").textContent = user;
    show("done");
}

canBeShown(password, document.getElementById("show"));
onSubmit(
    form,
    async () => {
        if (!password.value) {
            throw new Refusal({ code: "MISSING", field: "password", message: "Choose a password." });
        }
        if (password.value !== again.value) {
            throw new Refusal({ code: "DIFFERENT", field: "again", message: "This is not the same password: type both again." });
        }
        const { user } = await call("POST", "/invite", { secret, new_password: password.value });
        await logIn(user);
    },
    { new_password: "password" },
);
show(secret ? "with" : "without");
if (secret) password.focus();
nameCluster();
