// Package api is the public contract of Wrenn: openapi.yaml, and what is generated from
// it — the Go types, the server's interface and the client. Whoever serves or calls the
// native API imports it; it knows nothing of any floor, and nobody edits the generated
// files: change openapi.yaml and run go generate.
package api
