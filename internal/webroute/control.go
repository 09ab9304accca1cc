package webroute

import (
	"net/url"
	"strings"
)

// controlRoots are the first segments of what only a host may ask of the guest daemon.
var controlRoots = map[string]bool{
	"init": true, "freeze": true, "unfreeze": true, "collapse": true, "fsfreeze": true,
	"fsthaw": true, "upgrade": true, "snapshot": true,
}

// maxDecoding is how often a path is decoded at most: nobody on its way does that more
// often.
const maxDecoding = 4

// IsControl reports whether a path, as it was sent, could be taken by the guest daemon for
// one that only its host may ask. It errs on that side: any spelling that leads there after
// decoding, in any case, or through slashes and dots too many, counts.
func IsControl(path string) bool {
	path, _, _ = strings.Cut(path, "?")
	for range maxDecoding {
		if isControlRoot(path) {
			return true
		}
		decoded, err := url.PathUnescape(path)
		if err != nil || decoded == path {
			return false
		}
		path = decoded
	}
	return isControlRoot(path)
}

func isControlRoot(path string) bool {
	// Where the path ends up, and what any part of it would be if a cleaning stopped there.
	var segments []string
	for _, s := range strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		s, _, _ = strings.Cut(s, ";")
		switch s = strings.ToLower(strings.TrimSpace(s)); s {
		case "", ".":
		case "..":
			if len(segments) > 0 {
				segments = segments[:len(segments)-1]
			}
		default:
			segments = append(segments, s)
		}
	}
	return len(segments) > 0 && controlRoots[segments[0]]
}
