package image

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/host/child"
)

const (
	baseName        = "base"
	baseDefaultUser = "wrenn-user"

	// suite is the Debian release that the base is made of.
	suite = "bookworm"

	// recipeVersion is for changes of the procedure that nothing else in a recipe shows.
	recipeVersion = 2

	// hashDigits is how much of a recipe's hash is in the name of its image.
	hashDigits = 12
)

var (
	// debianSuites are the suites of Debian's own mirrors that make up the release.
	debianSuites = []string{suite, suite + "-updates", suite + "-security", suite + "-backports"}

	debianComponents = []string{"main", "contrib", "non-free", "non-free-firmware"}

	// basePackages are what a person or an agent expects at a prompt, beside what every
	// Debian has.
	basePackages = []string{
		"bash", "ca-certificates", "coreutils", "curl", "git", "iproute2", "less", "libpam-modules",
		"login", "ncurses-base", "ncurses-bin", "ncurses-term", "passwd", "procps", "python3",
		"python3-pip", "python3-venv", "sudo", "wget",
	}
)

//go:embed all:rootfs
var rootfs embed.FS

//go:embed customize.sh
var customizeScript []byte

const (
	plainMode   = 0o644
	sudoersMode = 0o440 // sudo refuses a file that others may read or write

	sudoersPath  = "etc/sudoers.d/wrenn"
	dpkgConfPath = "etc/dpkg/dpkg.cfg.d/wrenn"
)

// overlayFile is a file that is laid over the plain Debian.
type overlayFile struct {
	Mode fs.FileMode
	Data []byte
}

// recipe is all that decides what an image contains. Two recipes with the same key make
// the same image, but for the packages' versions.
type recipe struct {
	Version  int
	Suite    string
	Arch     string
	Packages []string
	Sources  []source
	Script   []byte
	Overlay  map[string]overlayFile // by path from the root, without a leading slash

	// aptOptions are the host's apt settings that the build needs and the guest must not
	// get, such as a proxy with its password. They do not change the image.
	aptOptions []byte
}

// key names the recipe's image.
func (r recipe) key() string {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // only strings, numbers and bytes: cannot happen
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])[:hashDigits]
}

// hostPaths is where the build finds what is particular to this machine.
type hostPaths struct {
	apt     aptHost
	localCA string // certificates that the owner of the machine trusts
}

func thisHost(apt aptHost) hostPaths {
	return hostPaths{apt: apt, localCA: "/usr/local/share/ca-certificates"}
}

// baseRecipe is the recipe of the base image on this machine at this moment.
func baseRecipe(ctx context.Context, host hostPaths) (recipe, error) {
	sources, err := host.apt.debianSources()
	if err != nil {
		return recipe{}, err
	}
	r := recipe{
		Version:  recipeVersion,
		Suite:    suite,
		Arch:     host.apt.arch,
		Packages: basePackages,
		Sources:  sources,
		Script:   customizeScript,
		Overlay:  map[string]overlayFile{},
	}
	if err := r.addRootfs(); err != nil {
		return recipe{}, err
	}
	if err := r.addKeyrings(); err != nil {
		return recipe{}, err
	}
	if err := r.addLocalCA(host.localCA); err != nil {
		return recipe{}, err
	}
	r.addAptSettings(hostAptSettings(ctx))
	guestSources := withoutPasswords(sources)
	r.Overlay["etc/apt/sources.list.d/debian.sources"] = overlayFile{plainMode, renderSources(guestSources)}
	return r, nil
}

func (r *recipe) addRootfs() error {
	return fs.WalkDir(rootfs, "rootfs", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := rootfs.ReadFile(path)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, "rootfs/")
		mode := fs.FileMode(plainMode)
		if name == sudoersPath {
			mode = sudoersMode
		}
		r.Overlay[name] = overlayFile{mode, data}
		return nil
	})
}

// addKeyrings brings the keys that sources name by a path of the host, other than those
// that every Debian has.
func (r *recipe) addKeyrings() error {
	for _, s := range r.Sources {
		key, _ := s.option("Signed-By")
		if !strings.HasPrefix(key, "/") || onlyDebianKeyrings(key) {
			continue
		}
		for _, path := range strings.FieldsFunc(key, func(c rune) bool { return c == ',' || c == ' ' }) {
			data, err := os.ReadFile(path)
			if err != nil {
				return fmt.Errorf("read the key of an apt source: %w", err)
			}
			r.Overlay[strings.TrimPrefix(filepath.Clean(path), "/")] = overlayFile{plainMode, data}
		}
	}
	return nil
}

// addLocalCA brings the certificates that the machine's owner added, such as those of a
// company's proxy: without them nothing in a sandbox could speak TLS through it.
func (r *recipe) addLocalCA(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".crt" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		r.Overlay[filepath.Join("usr/local/share/ca-certificates", name)] = overlayFile{plainMode, data}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("read local CA certificates: %w", err)
	}
	return nil
}

// aptSetting is one setting of the host's apt.
type aptSetting struct{ Name, Value string }

// addAptSettings takes over the settings without which the host's own apt could not use
// its mirror. The guest gets those that it needs to use the same mirror; a proxy is for
// the build alone, since it may carry a password and stand where no sandbox can reach.
func (r *recipe) addAptSettings(settings []aptSetting) {
	var build, guest strings.Builder
	for _, s := range settings {
		line := fmt.Sprintf("%s \"%s\";\n", s.Name, s.Value)
		build.WriteString(line)
		if strings.HasPrefix(s.Name, "Acquire::Check-") {
			guest.WriteString(line)
		}
	}
	r.aptOptions = []byte(build.String())
	if guest.Len() > 0 {
		text := "// As the machine that built this image has it for the same mirror.\n" + guest.String()
		r.Overlay["etc/apt/apt.conf.d/91host"] = overlayFile{plainMode, []byte(text)}
	}
}

// hostAptSettings asks the host's apt for what baseRecipe needs of its configuration. A
// host without apt has none.
func hostAptSettings(ctx context.Context) []aptSetting {
	var out strings.Builder
	cmd := exec.CommandContext(ctx, "apt-config", "dump", "--no-empty", "--format", "%f %v%n", "Acquire")
	cmd.Stdout = &out
	if err := child.Run(cmd); err != nil {
		return nil
	}
	return parseAptSettings(out.String())
}

func parseAptSettings(dump string) []aptSetting {
	var settings []aptSetting
	for line := range strings.Lines(dump) {
		name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		if !ok || value == "" || strings.ContainsAny(value, "\"\n") {
			continue
		}
		checks := name == "Acquire::Check-Valid-Until" || name == "Acquire::Check-Date"
		proxy := strings.HasPrefix(name, "Acquire::http::Proxy") || strings.HasPrefix(name, "Acquire::https::Proxy")
		if (checks && isNo(value)) || (proxy && !strings.Contains(name, "Auto-Detect")) {
			settings = append(settings, aptSetting{name, value})
		}
	}
	return settings
}

// withoutPasswords strips the user and password from URIs: they are the host's.
func withoutPasswords(sources []source) []source {
	stripped := make([]source, len(sources))
	for i, s := range sources {
		uris := make([]string, len(s.URIs))
		for k, uri := range s.URIs {
			scheme, rest, _ := strings.Cut(uri, "://")
			authority, path, _ := strings.Cut(rest, "/")
			if at := strings.LastIndexByte(authority, '@'); at >= 0 {
				authority = authority[at+1:]
			}
			uris[k] = scheme + "://" + authority + "/" + path
		}
		s.URIs = uris
		stripped[i] = s
	}
	return stripped
}

// debianArch is Debian's name of the architecture that this program was built for.
func debianArch() string {
	if runtime.GOARCH == "arm" {
		return "armhf"
	}
	return runtime.GOARCH // amd64, arm64, riscv64 and others have the same name
}
