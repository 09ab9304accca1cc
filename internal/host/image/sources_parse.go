package image

import (
	"bytes"
	"slices"
	"strings"
)

// optionNames are the options of a one-line source that are kept, with the names of
// their fields in a deb822 file: those that decide what is trusted and found. The others
// tune what apt downloads.
var optionNames = map[string]string{
	"signed-by":         "Signed-By",
	"trusted":           "Trusted",
	"allow-insecure":    "Allow-Insecure",
	"allow-weak":        "Allow-Weak",
	"check-valid-until": "Check-Valid-Until",
	"check-date":        "Check-Date",
	"by-hash":           "By-Hash",
	"snapshot":          "Snapshot",
}

// parseSources returns the enabled binary sources in a file for an architecture. The
// format follows the file's name, as with apt, and where the name does not tell, the
// text. What cannot be understood is left out: apt itself tells the host's owner.
func parseSources(name string, text []byte, arch string) []source {
	if strings.HasSuffix(name, ".sources") || (!strings.HasSuffix(name, ".list") && looksLikeDeb822(text)) {
		return parseDeb822(text, arch)
	}
	return parseOneLine(text, arch)
}

func looksLikeDeb822(text []byte) bool {
	for line := range bytes.Lines(text) {
		name, _, ok := strings.Cut(string(line), ":")
		if ok && strings.EqualFold(name, "Types") {
			return true
		}
	}
	return false
}

// parseOneLine reads the format of sources.list: `deb [options] uri suite components…`.
func parseOneLine(text []byte, arch string) []source {
	var sources []source
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == strings.TrimLeft(rest, " \t[") {
			continue
		}
		rest = strings.TrimSpace(rest)
		var inBrackets string
		if after, ok := strings.CutPrefix(rest, "["); ok {
			if inBrackets, rest, ok = strings.Cut(after, "]"); !ok {
				continue
			}
		}
		fields := strings.Fields(rest)
		const uriAndSuite = 2
		if len(fields) < uriAndSuite {
			continue
		}
		options, forUs := oneLineOptions(inBrackets, arch)
		if forUs {
			sources = append(sources, source{URIs: fields[:1], Suites: fields[1:2], Components: fields[2:], Options: options})
		}
	}
	return sources
}

// oneLineOptions splits `name=value name+=value …`, and reports whether the source is
// for the architecture.
func oneLineOptions(text, arch string) (options []option, forUs bool) {
	forUs = true
	for _, word := range strings.Fields(text) {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			continue
		}
		name = strings.ToLower(name)
		listed := slices.Contains(strings.Split(value, ","), arch)
		switch name {
		case "arch":
			forUs = listed
		case "arch-":
			forUs = forUs && !listed
		case "arch+":
			forUs = forUs || listed
		}
		if field, ok := optionNames[name]; ok && value != "" {
			options = append(options, option{field, value})
		}
	}
	return options, forUs
}

// parseDeb822 reads stanzas of `Name: value` fields whose values go on in lines that
// begin with a blank.
func parseDeb822(text []byte, arch string) []source {
	var sources []source
	fields := map[string]string{}
	last := ""
	end := func() {
		if s, ok := fromFields(fields, arch); ok {
			sources = append(sources, s)
		}
		fields, last = map[string]string{}, ""
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\r\n \t")
		switch {
		case line == "":
			end()
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				fields[last] += "\n " + strings.TrimSpace(line)
			}
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				last = ""
				continue
			}
			last = strings.ToLower(strings.TrimSpace(name))
			fields[last] = strings.TrimSpace(value)
		}
	}
	end()
	return sources
}

// fromFields makes a source of a stanza's fields, by their lower-case names.
func fromFields(fields map[string]string, arch string) (source, bool) {
	if !slices.Contains(strings.Fields(fields["types"]), "deb") || isNo(fields["enabled"]) {
		return source{}, false
	}
	archs, limited := fields["architectures"]
	forUs := !limited || slices.Contains(strings.Fields(archs), arch)
	forUs = forUs || slices.Contains(strings.Fields(fields["architectures-add"]), arch)
	if !forUs || slices.Contains(strings.Fields(fields["architectures-remove"]), arch) {
		return source{}, false
	}
	s := source{
		URIs:       strings.Fields(fields["uris"]),
		Suites:     strings.Fields(fields["suites"]),
		Components: strings.Fields(fields["components"]),
	}
	names := make([]string, 0, len(optionNames))
	for name := range optionNames {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if value, ok := fields[name]; ok && value != "" {
			s.Options = append(s.Options, option{optionNames[name], value})
		}
	}
	return s, len(s.URIs) > 0 && len(s.Suites) > 0
}

// isNo reports whether apt takes a value for a plain no.
func isNo(value string) bool {
	return slices.Contains([]string{"no", "false", "without", "off", "disable", "0"}, strings.ToLower(strings.TrimSpace(value)))
}
