package identity

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// eventsHost is the name under which programs know the service that takes their events, and
// eventsVariable tells them its URL.
const (
	eventsHost     = "events.e2b.local"
	eventsVariable = "E2B_EVENTS_ADDRESS"
)

// eventsURL is where the service of events is, at an address that checkSystem has passed.
func eventsURL(address string) string {
	if ip, err := netip.ParseAddr(address); err == nil && ip.Is6() {
		return "http://[" + address + "]"
	}
	return "http://" + address
}

// The address that Debian gives a machine's own name, and the lines that every hosts file
// has.
const (
	ownAddress = "127.0.1.1"
	localhost4 = "127.0.0.1\tlocalhost"
	localhost6 = "::1\tlocalhost ip6-localhost ip6-loopback"
)

// writeHosts brings the hosts file in line with an update.
func (s System) writeHosts(up Update) error {
	if s.HostsPath == "" || up.Hostname == "" && up.EventsIP == "" {
		return nil
	}
	old, err := readFile(s.HostsPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return replaceFile(s.HostsPath, hostsFile(string(old), up.Hostname, up.EventsIP))
}

// hostsFile returns old with name as the machine's own name, without which sudo looks the
// name up on the network, and complains; and with the address of the service of events.
// Of either what is empty is left as it is in old.
func hostsFile(old, name, events string) string {
	var lines []string
	has4, has6 := false, false
	for line := range strings.Lines(old) {
		line = strings.TrimRight(line, "\n")
		fields := strings.Fields(line)
		if name != "" && len(fields) > 0 && fields[0] == ownAddress {
			continue
		}
		if events != "" {
			var left bool
			if line, left = withoutName(line, eventsHost); !left {
				continue
			}
		}
		if len(fields) > 1 {
			has4 = has4 || fields[0] == "127.0.0.1"
			has6 = has6 || fields[0] == "::1"
		}
		lines = append(lines, line)
	}
	first := []string{}
	if !has4 {
		first = append(first, localhost4)
	}
	if !has6 {
		first = append(first, localhost6)
	}
	lines = append(first, lines...)
	if name != "" {
		lines = append(lines, ownAddress+"\t"+name)
	}
	if events != "" {
		lines = append(lines, events+"\t"+eventsHost)
	}
	return strings.Join(lines, "\n") + "\n"
}

// withoutName takes a name off a line of a hosts file, and says whether anything is left.
func withoutName(line, name string) (string, bool) {
	entry, comment, _ := strings.Cut(line, "#")
	fields := strings.Fields(entry)
	if len(fields) == 0 || !slices.Contains(fields[1:], name) {
		return line, true
	}
	rest := slices.DeleteFunc(fields[1:], func(field string) bool { return field == name })
	if len(rest) == 0 {
		return "", false
	}
	line = fields[0] + "\t" + strings.Join(rest, " ")
	if comment != "" {
		line += " #" + comment
	}
	return line, true
}
