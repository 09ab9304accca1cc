package rpc

import (
	"net/http"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
)

// metadataHeader begins the names of the headers that say what to keep about the files of
// an upload.
const metadataHeader = "x-metadata-"

// metadataOf returns what an upload's headers want to be kept. A header that came more than
// once has its values joined, as anything between here and the client may have done.
func metadataOf(header http.Header) (map[string]string, error) {
	var found map[string]string
	for name, values := range header {
		key, ours := strings.CutPrefix(strings.ToLower(name), metadataHeader)
		if !ours {
			continue
		}
		if found == nil {
			found = make(map[string]string)
		}
		found[key] = strings.Join(values, ", ")
	}
	return found, filesystem.CheckMetadata(found)
}
