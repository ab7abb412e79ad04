// The OpenID Connect provider `oidc-provider` (npm) behind a TLS port. Arguments: the folder that npm has installed it in, and a
// JSON file, which is read again for each login: {port, certificate, key, client: {…}, users: {NAME: {claims}}}.
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import { pathToFileURL } from "node:url";

const [folder, file] = process.argv.slice(2);
const { default: Provider } = await import(pathToFileURL(`${folder}/node_modules/oidc-provider/lib/index.js`));
const settings = () => JSON.parse(readFileSync(file, "utf8"));
const { port, certificate, key, client } = settings();

const provider = new Provider(`https://localhost:${port}`, {
    clients: [client],
    claims: { openid: ["sub"], profile: ["preferred_username"], groups: ["groups", "logins"] },
    scopes: ["openid", "groups"],
    pkce: { required: () => true },
    cookies: { keys: ["of this test"] },
    findAccount(_, id) {
        const user = settings().users[id];
        return user && { accountId: id, claims: () => ({ sub: id, ...user }) };
    },
});
provider.on("server_error", (_, error) => console.error(error));
provider.on("grant.error", (_, error) => console.error("grant refused:", error.error_description));
const tls = { cert: readFileSync(certificate), key: readFileSync(key) };
createServer(tls, provider.callback()).listen(port, "127.0.0.1", () => console.log("serving"));
