package httpapi

import (
	"net/http"

	"github.com/swaggest/swgui/v5emb"

	"github.com/wrenn-sandbox/wrenn/api"
)

// addDocuments serves the API's description and a page to read and try it, whose parts
// are all in this program.
func addDocuments(mux *http.ServeMux) {
	mux.HandleFunc("GET /openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(api.YAML) // the client may be gone; there is nobody left to tell
	})
	mux.Handle("GET /docs/", v5emb.New("Wrenn", "/openapi.yaml", "/docs/"))
}
