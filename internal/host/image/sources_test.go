package image

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const debianKey = "/usr/share/keyrings/debian-archive-keyring.gpg"

// testHost is a host with the given files under /etc/apt.
func testHost(t *testing.T, files map[string]string) aptHost {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		writeTestFile(t, filepath.Join(dir, "etc", name), text)
	}
	return aptHost{etc: filepath.Join(dir, "etc"), lists: filepath.Join(dir, "lists"), arch: "amd64"}
}

func TestDebianSources(t *testing.T) {
	plain := source{URIs: []string{"http://mirror.test/debian"}, Suites: []string{"bookworm"}, Components: []string{"main"}}
	signed := plain
	signed.Options = []option{{"Signed-By", debianKey}}
	for name, tt := range map[string]struct {
		files map[string]string
		want  []source
	}{
		"deb822 with comments, several suites and URIs": {
			map[string]string{"sources.list.d/debian.sources": "# mine\nTypes: deb deb-src\n# http://old.test/debian\nURIs: http://mirror.test/debian\n http://second.test/debian\n" +
				"Suites: bookworm bookworm-updates sid\nComponents: main extra non-free-firmware\nSigned-By: " + debianKey + "\n\n\n" +
				"types: deb\nuris: https://sec.test/debian-security/\nsuites: bookworm-security\ncomponents: main\n"},
			[]source{
				{
					[]string{"http://mirror.test/debian", "http://second.test/debian"},
					[]string{"bookworm", "bookworm-updates"},
					[]string{"main", "non-free-firmware"},
					[]option{{"Signed-By", debianKey}},
				},
				{URIs: []string{"https://sec.test/debian-security/"}, Suites: []string{"bookworm-security"}, Components: []string{"main"}},
			},
		},
		"one line": {
			map[string]string{"sources.list": "# deb http://off.test/debian bookworm main\n\ndeb http://mirror.test/debian bookworm main # mine\ndeb-src http://mirror.test/debian bookworm main\n"},
			[]source{plain},
		},
		"one line with options": {
			map[string]string{"sources.list": "deb [ arch=amd64,arm64 signed-by=" + debianKey + " lang=en ] http://mirror.test/debian bookworm main\n" +
				"deb [arch=arm64] http://arm.test/debian bookworm main\ndeb [arch-=amd64] http://noamd.test/debian bookworm main\n"},
			[]source{signed},
		},
		"disabled and foreign architectures": {
			map[string]string{
				"sources.list": "deb http://mirror.test/debian bookworm main",
				"sources.list.d/a.sources": "Enabled: no\nTypes: deb\nURIs: http://off.test/debian\nSuites: bookworm\nComponents: main\n\n" +
					"Types: deb\nURIs: http://arm.test/debian\nSuites: bookworm\nComponents: main\nArchitectures: arm64\n\n" +
					"Types: deb\nURIs: http://rm.test/debian\nSuites: bookworm\nComponents: main\nArchitectures-Remove: amd64\n\n" +
					"Types: deb-src\nURIs: http://src.test/debian\nSuites: bookworm\nComponents: main\n",
				"sources.list.d/b.list.save":  "deb http://saved.test/debian bookworm main",
				"sources.list.d/c.list.d/x":   "deb http://dir.test/debian bookworm main",
				"sources.list.d/d.list.d.off": "deb http://off2.test/debian bookworm main",
			},
			[]source{plain},
		},
		"third parties": {
			map[string]string{
				"sources.list": "deb http://mirror.test/debian bookworm main",
				"sources.list.d/third.list": "deb [signed-by=/etc/apt/keyrings/third.gpg] https://third.test/linux bookworm main\n" +
					"deb https://stable.test/linux/debian bookworm stable\ndeb https://other.test/node nodistro main\n",
			},
			[]source{plain},
		},
		"the same twice": {
			map[string]string{
				"sources.list":              "deb http://mirror.test/debian bookworm main",
				"sources.list.d/again.list": "deb http://mirror.test/debian bookworm main",
			},
			[]source{plain},
		},
		"what a guest cannot reach": {
			map[string]string{"sources.list": "deb cdrom:[Debian]/ bookworm main\ndeb file:/srv/mirror bookworm main\ndeb http://mirror.test/debian bookworm main"},
			[]source{plain},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := testHost(t, tt.files).debianSources()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Fatalf("sources (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMirrorListInAFile(t *testing.T) {
	host := testHost(t, map[string]string{"mirrors/debian.list": "# of the cloud\nhttps://mirror.test/debian\thpriority:1\nhttps://second.test/debian\n"})
	list := filepath.Join(host.etc, "mirrors/debian.list")
	writeTestFile(t, filepath.Join(host.etc, "sources.list"), "deb mirror+file://"+list+" bookworm main")
	got, err := host.debianSources()
	if err != nil || len(got) != 1 || got[0].URIs[0] != "https://mirror.test/debian" {
		t.Fatalf("got %+v, %v", got, err)
	}
}

func TestIndexTellsWhoseSourceItIs(t *testing.T) {
	host := testHost(t, map[string]string{"sources.list": "deb http://u:p@third.test/my_apt/ bookworm main\ndeb http://mirror.test/debian bookworm main"})
	writeTestFile(t, filepath.Join(host.lists, "third.test_my%5fapt_dists_bookworm_InRelease"), "Hash: SHA256\n\nOrigin: Third\n")
	writeTestFile(t, filepath.Join(host.lists, "mirror.test_debian_dists_bookworm_InRelease"), "Origin: Debian\n")
	got, err := host.debianSources()
	if err != nil || len(got) != 1 || got[0].URIs[0] != "http://mirror.test/debian" {
		t.Fatalf("got %+v, %v", got, err)
	}
}

func TestNoDebianSources(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"nothing":       {},
		"ubuntu":        {"sources.list": "deb http://mirror.test/ubuntu noble main"},
		"updates alone": {"sources.list": "deb http://mirror.test/debian bookworm-updates main"},
		"no main":       {"sources.list": "deb http://mirror.test/debian bookworm contrib"},
	} {
		_, err := testHost(t, files).debianSources()
		if !fault.Is(err, fault.HostUnavailable) || !strings.Contains(fault.MessageOf(err), sourcesEnv) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOverriddenSources(t *testing.T) {
	host := testHost(t, map[string]string{"mine": "deb [signed-by=/etc/apt/keyrings/mine.gpg] http://mine.test/d bookworm main\ndeb http://mine.test/extra bookworm-mine extra"})
	host.override = filepath.Join(host.etc, "mine")
	got, err := host.debianSources()
	if err != nil || len(got) != 2 || got[0].URIs[0] != "http://mine.test/d" {
		t.Fatalf("got %+v, %v", got, err)
	}
	writeTestFile(t, host.override, "Types: deb\nURIs: http://deb822.test/d\nSuites: bookworm\nComponents: main\n")
	if got, err = host.debianSources(); err != nil || got[0].URIs[0] != "http://deb822.test/d" {
		t.Fatalf("got %+v, %v", got, err)
	}
	writeTestFile(t, host.override, "nothing of use")
	if _, err := host.debianSources(); !fault.Is(err, fault.HostUnavailable) || !strings.Contains(fault.MessageOf(err), host.override) {
		t.Fatal(err)
	}
	host.override += "-missing"
	if _, err := host.debianSources(); !fault.Is(err, fault.HostUnavailable) || !strings.Contains(fault.MessageOf(err), host.override) {
		t.Fatal(err)
	}
}

// FuzzParseSources checks that what is read of any file can be written and read again.
func FuzzParseSources(f *testing.F) {
	f.Add("deb [ arch=amd64 signed-by=/k ] http://m.test/debian bookworm main contrib # x\n")
	f.Add("Types: deb\nURIs: http://m.test\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n")
	f.Add("Types:deb\n\tdeb-src\nUris: a\n# c\n b\nSuites:/\nEnabled: off\n\n:\n x")
	f.Add("deb [a=b http://m.test x")
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range []string{"a.list", "a.sources", "a"} {
			first := parseSources(name, []byte(text), "amd64")
			written := renderSources(first)
			second := parseSources("b.sources", written, "amd64")
			if again := renderSources(second); !bytes.Equal(written, again) || len(first) != len(second) {
				t.Fatalf("%q was written as\n%s\nand then as\n%s", text, written, again)
			}
		}
	})
}
