package arch

import (
	"slices"
	"strings"
	"testing"
)

// contracts are where floors meet.
var contracts = []string{"api", "proto/host", "proto/guest"}

// leaves are small packages that every floor may share. They know no floor.
var leaves = append([]string{"internal/fault", "internal/atomicfile", "internal/meminfo", "internal/webroute", "internal/relay"}, forTests...)

// forTests are leaves that only tests may import.
var forTests = []string{"internal/testenv", "internal/relay/relaytest", "internal/control/dnsupdate/zonetest"}

// room is a part of the tree and what it may import of the rest of the module, besides
// itself.
type room struct {
	path string
	may  []string
}

// rooms: the longest path that holds a package decides. Only cmd wires floors together,
// and only whole-program tests and benchmarks look at everything.
var rooms = []room{
	{"api", nil},
	{"proto/host", nil},
	{"proto/guest", nil},
	{"internal/fault", nil},
	{"internal/atomicfile", nil},
	{"internal/meminfo", nil},
	{"internal/webroute", []string{"internal/fault"}},
	{"internal/relay", nil},
	{"internal/profile", leaves},
	{"internal/testenv", nil},
	{"internal/cli", append([]string{"api", "internal/profile"}, leaves...)},
	{"internal/recipe", leaves},
	{"internal/control", append([]string{"api", "proto/host", "internal/recipe"}, leaves...)},
	{"internal/host", append([]string{"proto/host", "proto/guest"}, leaves...)},
	{"internal/guest", append([]string{"proto/guest"}, leaves...)},
	{"cmd/envd", append([]string{"internal/guest", "proto/guest"}, leaves...)},
	{"cmd/wrenn", append([]string{"api", "proto/host", "internal/cli", "internal/profile", "internal/control", "internal/host", "web"}, leaves...)},
	{"web", nil},
	{"bench", append([]string{"api", "internal/profile"}, leaves...)},
	{"bench/guest", append([]string{"proto/guest"}, leaves...)},
	// What isolation buys is seen at the host agent's socket, where the control floor decides it.
	{"bench/proxy", append([]string{"api", "proto/host", "bench/product", "bench/report"}, leaves...)},
	// What a driver costs beside the bare runtime is measured on the driver itself.
	{"bench/runtime", append([]string{"internal/host"}, leaves...)},
	{"test", []string{"api", "proto", "internal", "cmd", "bench"}},
}

// under reports whether path is dir or inside it.
func under(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

func roomOf(path string) *room {
	var best *room
	for i, r := range rooms {
		if under(path, r.path) && (best == nil || len(r.path) > len(best.path)) {
			best = &rooms[i]
		}
	}
	return best
}

// The table above is itself a claim: no floor may see another.
func TestNoRoomOpensAFloorToAnother(t *testing.T) {
	floors := []string{"internal/control", "internal/host", "internal/guest"}
	for _, floor := range append(slices.Clone(floors), "internal/cli", "internal/fault", "internal/profile", "internal/recipe") {
		for _, other := range floors {
			if floor != other && slices.ContainsFunc(roomOf(floor).may, func(may string) bool { return under(other, may) }) {
				t.Errorf("%s may import %s", floor, other)
			}
		}
	}
}

func TestUnder(t *testing.T) {
	if !under("internal/host", "internal/host") || !under("internal/host/image", "internal/host") || under("internal/hostile", "internal/host") {
		t.Fatal("under mistakes a name that begins alike for a folder")
	}
}
