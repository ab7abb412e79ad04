// Talks to the cluster: JSON each way, and errors as they are told.

/** What the cluster refused, or why it could not be asked. */
export class Refusal extends Error {
    constructor({ code = "UNKNOWN", message = "Something went wrong. Try again.", field = "" }) {
        super(message);
        this.code = code;
        this.field = field;
    }
}

/** Asks for `path` of the API; what is not a GET may bring a body. */
export async function call(method, path, body) {
    const headers = {};
    if (method !== "GET") headers["X-Mezite-Request"] = "1";
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
        response = await fetch(`/v1/webapi${path}`, {
            method,
            headers,
            body: body === undefined ? undefined : JSON.stringify(body),
            credentials: "same-origin",
            cache: "no-store",
            redirect: "error",
        });
    } catch {
        throw new Refusal({
            code: "UNREACHABLE",
            message: "The cluster could not be reached. Check your connection, and try again.",
        });
    }
    let answer = {};
    try {
        answer = await response.json();
    } catch {
        // What stands in between may answer something else.
    }
    if (response.ok) return answer;
    throw new Refusal(answer);
}

/** Shows which cluster this is, and answers what it says of itself: nothing, where it cannot be asked. */
export async function nameCluster() {
    const place = document.getElementById("cluster");
    try {
        const ping = await call("GET", "/ping");
        place.textContent = ping.cluster;
        return ping;
    } catch {
        place.textContent = "";
        return {};
    }
}
