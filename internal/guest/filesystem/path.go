package filesystem

import (
	"path"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Limits of Linux on a path and on each of its names, in bytes (limits.h).
const (
	maxPath = 4095
	maxName = 255
)

// Resolve turns the path that a caller gave into a clean absolute one. Empty is workdir,
// or home when there is none; a leading ~ is home; relative paths start at home. It looks
// at nothing but the text.
func Resolve(given, home, workdir string) (string, error) {
	var abs string
	switch {
	case given == "" && workdir != "":
		abs = workdir
	case given == "" || given == "~":
		abs = home
	case strings.HasPrefix(given, "~/"):
		abs = home + given[1:]
	case given[0] == '~':
		name, _, _ := strings.Cut(given, "/")
		return "", fault.New(fault.InvalidRequest,
			"path '%s' starts in another user's home; write './%s' if that is a file's name, or the home's full path", given, name)
	case given[0] == '/':
		abs = given
	default:
		abs = home + "/" + given
	}
	if strings.ContainsRune(abs, 0) {
		return "", fault.New(fault.InvalidRequest, "path %q contains a NUL byte", abs)
	}
	abs = path.Clean("/" + abs)
	if len(abs) > maxPath {
		return "", fault.New(fault.InvalidRequest, "the path is too long: %d bytes of at most %d", len(abs), maxPath)
	}
	for name := range strings.SplitSeq(abs, "/") {
		if len(name) > maxName {
			return "", fault.New(fault.InvalidRequest,
				"the path has too long a name: '%.32s…' has %d bytes of at most %d", name, len(name), maxName)
		}
	}
	return abs, nil
}
