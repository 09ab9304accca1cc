package api

import _ "embed" // for YAML

//go:generate ../bin/tools/oapi-codegen -config types.cfg.yaml openapi.yaml
//go:generate ../bin/tools/oapi-codegen -config server.cfg.yaml openapi.yaml
//go:generate ../bin/tools/oapi-codegen -config client.cfg.yaml openapi.yaml

// YAML is openapi.yaml as it is served to the public and validated against. It also
// describes the WebSocket routes, which the generated server leaves out: they take over
// the connection, which a typed handler cannot.
//
//go:embed openapi.yaml
var YAML []byte
