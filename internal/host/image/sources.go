package image

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// sourcesEnv names a file with the apt sources to build from, in either of apt's
// formats, in place of the host's own.
const sourcesEnv = "WRENN_APT_SOURCES"

// source is one stanza of a deb822 sources file, which a line of a one-line file is too.
type source struct {
	URIs       []string
	Suites     []string
	Components []string
	Options    []option
}

// option is another field of a stanza, such as Signed-By. Its value may have several
// lines, in the format of a deb822 file.
type option struct{ Name, Value string }

func (s source) option(name string) (string, bool) {
	for _, o := range s.Options {
		if strings.EqualFold(o.Name, name) {
			return o.Value, true
		}
	}
	return "", false
}

// renderSources writes sources in the deb822 format.
func renderSources(sources []source) []byte {
	var b bytes.Buffer
	for i, s := range sources {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\n", strings.Join(s.URIs, " "), strings.Join(s.Suites, " "))
		if len(s.Components) > 0 {
			fmt.Fprintf(&b, "Components: %s\n", strings.Join(s.Components, " "))
		}
		for _, o := range s.Options {
			fmt.Fprintf(&b, "%s: %s\n", o.Name, o.Value)
		}
	}
	return b.Bytes()
}

// aptHost is where a host keeps its apt configuration; tests bring their own.
type aptHost struct {
	etc      string // /etc/apt
	lists    string // /var/lib/apt/lists: the indexes of the last `apt-get update`
	arch     string // Debian's name of the host's architecture
	override string // the value of sourcesEnv
}

// debianKeyrings are the files that hold Debian's own archive keys and nothing else. A
// source that is signed by another key is not Debian's.
var debianKeyrings = []string{
	"/usr/share/keyrings/debian-archive-keyring.gpg",
	"/usr/share/keyrings/debian-archive-keyring.pgp",
}

// debianSources returns the sources to build the base from: Debian's own of the suite
// among those that the host's apt uses, or all of the override.
func (h aptHost) debianSources() ([]source, error) {
	if h.override != "" {
		return h.overriddenSources()
	}
	files, err := h.sourceFiles()
	if err != nil {
		return nil, err
	}
	var found []source
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read apt sources: %w", err)
		}
		for _, s := range parseSources(file, text, h.arch) {
			if s, ok := h.debianPart(s); ok {
				found = append(found, s)
			}
		}
	}
	found = withoutRepeats(found)
	if !bootable(found) {
		return nil, fault.New(fault.HostUnavailable,
			"this machine's apt has no source of Debian %[1]s to build the base image from; "+
				"write one to a file (such as: deb http://MIRROR/debian %[1]s main) and set %[2]s to its path", suite, sourcesEnv)
	}
	return found, nil
}

func (h aptHost) overriddenSources() ([]source, error) {
	text, err := os.ReadFile(h.override)
	if err != nil {
		return nil, fault.Wrap(err, fault.HostUnavailable, "the file %s that %s names cannot be read", h.override, sourcesEnv)
	}
	var found []source
	for _, s := range parseSources(h.override, text, h.arch) {
		if s.URIs = reachable(s.URIs); len(s.URIs) > 0 {
			found = append(found, s)
		}
	}
	if found = withoutRepeats(found); !bootable(found) {
		return nil, fault.New(fault.HostUnavailable,
			"the file %[1]s that %[2]s names has no enabled source of Debian %[3]s for %[4]s over http or https; it needs a line such as: deb http://MIRROR/debian %[3]s main",
			h.override, sourcesEnv, suite, h.arch)
	}
	return found, nil
}

// sourceFiles returns the files that apt reads, in its order.
func (h aptHost) sourceFiles() ([]string, error) {
	var files []string
	if _, err := os.Stat(filepath.Join(h.etc, "sources.list")); err == nil {
		files = append(files, filepath.Join(h.etc, "sources.list"))
	}
	dir := filepath.Join(h.etc, "sources.list.d")
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("read apt sources: %w", err)
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); e.Type() != fs.ModeDir && (ext == ".list" || ext == ".sources") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

// debianPart reduces a source to what is Debian's own of the suite, if anything is.
func (h aptHost) debianPart(s source) (source, bool) {
	if key, ok := s.option("Signed-By"); ok && !onlyDebianKeyrings(key) {
		return source{}, false
	}
	s.URIs = reachable(s.URIs)
	s.Suites = slices.DeleteFunc(slices.Clone(s.Suites), func(name string) bool {
		return !slices.Contains(debianSuites, name) ||
			slices.ContainsFunc(s.URIs, func(uri string) bool { return h.foreign(uri, name) })
	})
	s.Components = slices.DeleteFunc(slices.Clone(s.Components), func(name string) bool {
		return !slices.Contains(debianComponents, name)
	})
	return s, len(s.URIs) > 0 && len(s.Suites) > 0 && len(s.Components) > 0
}

func onlyDebianKeyrings(signedBy string) bool {
	fields := strings.FieldsFunc(signedBy, func(r rune) bool { return r == ' ' || r == ',' || r == '\n' || r == '\t' })
	return len(fields) > 0 && !slices.ContainsFunc(fields, func(f string) bool { return !slices.Contains(debianKeyrings, f) })
}

// foreign reports whether the index that apt last fetched of a suite says that it is not
// Debian's. Third parties name their suites after Debian's, and their keys may lie among
// apt's trusted ones, so that nothing in the source itself tells them apart.
func (h aptHost) foreign(uri, suite string) bool {
	base := filepath.Join(h.lists, listName(uri)+"_dists_"+strings.ReplaceAll(suite, "/", "_"))
	for _, name := range []string{base + "_InRelease", base + "_Release"} {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if origin, ok := strings.CutPrefix(line, "Origin:"); ok {
				return strings.TrimSpace(origin) != "Debian"
			}
		}
	}
	return false
}

// listName is how apt names its copy of a file after the URI that it came from.
func listName(uri string) string {
	if _, rest, ok := strings.Cut(uri, "://"); ok {
		uri = rest
	}
	uri = strings.TrimRight(uri, "/")
	if at := strings.Index(uri, "@"); at >= 0 && at < strings.IndexByte(uri+"/", '/') {
		uri = uri[at+1:]
	}
	var b strings.Builder
	for _, c := range []byte(uri) {
		switch {
		case c == '/':
			b.WriteByte('_')
		case strings.IndexByte(`\|{}[]<>"^~_=!@#$%^&*`, c) >= 0 || c <= ' ' || c >= 0x7f:
			fmt.Fprintf(&b, "%%%02x", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// reachable keeps the URIs that a guest can reach as well as the host. A list of mirrors
// in a file of the host, as Debian's cloud images have it, stands for its first one.
func reachable(uris []string) []string {
	var kept []string
	for _, uri := range uris {
		if path, ok := strings.CutPrefix(uri, "mirror+file:"); ok {
			uri = firstMirror("/" + strings.TrimLeft(path, "/"))
		}
		if strings.HasPrefix(uri, "http://") || strings.HasPrefix(uri, "https://") {
			kept = append(kept, uri)
		}
	}
	return kept
}

// firstMirror returns the first URI of a file in apt's mirror list format, or "".
func firstMirror(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 0 && !strings.HasPrefix(fields[0], "#") {
			return fields[0]
		}
	}
	return ""
}

// bootable reports whether a system can be made from sources: whether they have the main
// component of the suite itself.
func bootable(sources []source) bool {
	return slices.ContainsFunc(sources, func(s source) bool {
		return slices.Contains(s.Suites, suite) && slices.Contains(s.Components, "main")
	})
}

func withoutRepeats(sources []source) []source {
	seen := map[string]bool{}
	return slices.DeleteFunc(sources, func(s source) bool {
		text := string(renderSources([]source{s}))
		repeated := seen[text]
		seen[text] = true
		return repeated
	})
}
