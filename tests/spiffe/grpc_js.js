// A workload with npm's @grpc/grpc-js, unchanged: every call of the Workload API, and Envoy's secret discovery service.
// `node grpc_js.js MODULES ENDPOINT [ROTATIONS]` prints one JSON object of what it saw.
'use strict';
const [modules, endpoint, rotations] = process.argv.slice(2);
const grpc = require(`${modules}/@grpc/grpc-js`);
const loader = require(`${modules}/@grpc/proto-loader`);
const crypto = require('crypto');
const fs = require('fs');
const os = require('os');
const path = require('path');

// The standard's service, written from its text; Envoy's, as far as it is used here.
const WORKLOAD = `
syntax = "proto3";
import "google/protobuf/struct.proto";
service SpiffeWorkloadAPI {
  rpc FetchX509SVID(X509SVIDRequest) returns (stream X509SVIDResponse);
  rpc FetchX509Bundles(X509BundlesRequest) returns (stream X509BundlesResponse);
  rpc FetchJWTSVID(JWTSVIDRequest) returns (JWTSVIDResponse);
  rpc FetchJWTBundles(JWTBundlesRequest) returns (stream JWTBundlesResponse);
  rpc ValidateJWTSVID(ValidateJWTSVIDRequest) returns (ValidateJWTSVIDResponse);
}
message X509SVIDRequest {}
message X509SVIDResponse {
  repeated X509SVID svids = 1;
  repeated bytes crl = 2;
  map<string, bytes> federated_bundles = 3;
}
message X509SVID {
  string spiffe_id = 1;
  bytes x509_svid = 2;
  bytes x509_svid_key = 3;
  bytes bundle = 4;
  string hint = 5;
}
message X509BundlesRequest {}
message X509BundlesResponse { repeated bytes crl = 1; map<string, bytes> bundles = 2; }
message JWTSVIDRequest { repeated string audience = 1; string spiffe_id = 2; }
message JWTSVIDResponse { repeated JWTSVID svids = 1; }
message JWTSVID { string spiffe_id = 1; string svid = 2; string hint = 3; }
message JWTBundlesRequest {}
message JWTBundlesResponse { map<string, bytes> bundles = 1; }
message ValidateJWTSVIDRequest { string audience = 1; string svid = 2; }
message ValidateJWTSVIDResponse { string spiffe_id = 1; google.protobuf.Struct claims = 2; }
`;
const SECRETS = `
syntax = "proto3";
package envoy.service.secret.v3;
service SecretDiscoveryService {
  rpc StreamSecrets(stream DiscoveryRequest) returns (stream DiscoveryResponse);
  rpc FetchSecrets(DiscoveryRequest) returns (DiscoveryResponse);
}
message DiscoveryRequest {
  string version_info = 1;
  repeated string resource_names = 3;
  string type_url = 4;
  string response_nonce = 5;
}
message Resource { string type_url = 1; bytes value = 2; }
message DiscoveryResponse { string version_info = 1; repeated Resource resources = 2; string type_url = 4; string nonce = 5; }
`;

function load(text) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'proto-'));
  const file = path.join(directory, 'it.proto');
  fs.writeFileSync(file, text);
  const loaded = grpc.loadPackageDefinition(loader.loadSync(file, { keepCase: true }));
  fs.rmSync(directory, { recursive: true });
  return loaded;
}

const header = new grpc.Metadata();
header.set('workload.spiffe.io', 'true');
const open = grpc.credentials.createInsecure();
const api = new (load(WORKLOAD).SpiffeWorkloadAPI)(endpoint, open);
const sds = new (load(SECRETS).envoy.service.secret.v3.SecretDiscoveryService)(endpoint, open);

const unary = (client, name, message, metadata) => new Promise((resolve) =>
  client[name](message, metadata, { deadline: Date.now() + 20000 }, (error, answer) => resolve(error || answer)));

function streamed(name, wanted, metadata = header) {
  return new Promise((resolve) => {
    const found = [];
    const stream = api[name]({}, metadata, { deadline: Date.now() + 60000 });
    stream.on('data', (message) => {
      found.push(message);
      if (found.length === wanted) { stream.cancel(); resolve(found); }
    });
    stream.on('error', (error) => resolve(found.length === wanted ? found : error));
  });
}

async function main() {
  const [x509, bundles, jwt] = [
    await streamed('FetchX509SVID', Number(rotations || 1)),
    await streamed('FetchX509Bundles', 1),
    await unary(api, 'FetchJWTSVID', { audience: ['service'] }, header),
  ];
  if (x509 instanceof Error) return { code: x509.code };
  const token = jwt.svids[0];
  const valid = await unary(api, 'ValidateJWTSVID', { audience: 'service', svid: token.svid }, header);
  const other = await unary(api, 'ValidateJWTSVID', { audience: 'another', svid: token.svid }, header);
  const bare = await streamed('FetchX509SVID', 1, new grpc.Metadata());
  const svids = x509.map((one) => one.svids[0]);
  const leaves = svids.map((one) => new crypto.X509Certificate(one.x509_svid));
  const roots = Object.values(bundles[0].bundles).map((one) => new crypto.X509Certificate(one));
  const keys = await streamed('FetchJWTBundles', 1);
  const secrets = await unary(sds, 'FetchSecrets', { resource_names: ['default', 'ROOTCA'] }, new grpc.Metadata());
  const stranger = await unary(sds, 'FetchSecrets', { resource_names: ['spiffe://nucleus.local/stranger'] }, new grpc.Metadata());
  return {
    names: [...new Set(svids.map((one) => one.spiffe_id))],
    serials: new Set(leaves.map((one) => one.serialNumber)).size,
    trusted: leaves.every((one) => roots.some((root) => one.checkIssued(root) && one.verify(root.publicKey))),
    keys_fit: svids.every((one, at) => leaves[at].checkPrivateKey(
      crypto.createPrivateKey({ key: one.x509_svid_key, format: 'der', type: 'pkcs8' }))),
    jwt: token.spiffe_id,
    valid: valid.spiffe_id,
    claims: Object.keys(valid.claims.fields).sort(),
    other: other.code,
    bare: bare.code,
    jwks: Object.values(keys[0].bundles).map((one) => JSON.parse(one).keys.length),
    secrets: secrets.resources.map((one) => one.type_url.split('.').pop()),
    stranger: stranger.code,
  };
}

main().then((found) => { process.stdout.write(JSON.stringify(found) + '\n'); process.exit(0); });
