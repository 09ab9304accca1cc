package filesystem

import "strings"

// Temporary is what a file with a temporary name is to become.
type Temporary uint8

// The kinds of temporary names, so that whoever sees a rename from one knows what it means
// to those who know the file by its own name only.
const (
	NotTemporary Temporary = iota
	NewFile                // a file that was not there
	NewContent             // the content of a file that was there
)

// What begins the names of files that are being written.
const (
	newFilePrefix    = ".wrenn-create-"
	newContentPrefix = ".wrenn-write-"
)

// TemporaryKind says whether name is that of a file which is being written and will get
// its real name when it is complete, and what it will be then.
func TemporaryKind(name string) Temporary {
	switch {
	case strings.HasPrefix(name, newFilePrefix):
		return NewFile
	case strings.HasPrefix(name, newContentPrefix):
		return NewContent
	}
	return NotTemporary
}

// IsTemporary says whether name is a temporary one.
func IsTemporary(name string) bool { return TemporaryKind(name) != NotTemporary }

// prefix begins the temporary names of this kind.
func (t Temporary) prefix() string {
	if t == NewFile {
		return newFilePrefix
	}
	return newContentPrefix
}
