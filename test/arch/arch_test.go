package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/wrenn-sandbox/wrenn"

// maxLines is the longest that a file written by hand may be.
const maxLines = 500

// listed is what `go list -json` says of one package.
type listed struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// rel is the package's path inside the module; the root package is "".
func (p listed) rel() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Dir,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", module+"/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list said something unreadable: %v", err)
		}
		all = append(all, p)
	}
	if len(all) < 2 {
		t.Fatalf("go list found %d packages", len(all))
	}
	return all
}

// sourceFile is one parsed Go file.
type sourceFile struct {
	path      string
	text      []byte
	syntax    *ast.File
	generated bool
	test      bool
}

func files(t *testing.T, p listed) []sourceFile {
	t.Helper()
	var all []sourceFile
	for _, name := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
		path := filepath.Join(p.Dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), path, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, sourceFile{
			path: filepath.Join(p.rel(), name), text: text, syntax: syntax,
			generated: ast.IsGenerated(syntax), test: strings.HasSuffix(name, "_test.go"),
		})
	}
	return all
}

func TestFloorsMeetOnlyInContracts(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		room := roomOf(p.rel())
		if room == nil {
			t.Errorf("%s is in no room; give it one in rooms_test.go", p.rel())
			continue
		}
		seen[room.path] = true
		// A test may use what the package under test may, and no more: a floor that needs
		// another one to be tested is not a floor.
		for _, imported := range p.Imports {
			if target, _ := strings.CutPrefix(imported, module+"/"); slices.Contains(forTests, target) {
				t.Errorf("%s imports %s, which is for tests only", p.rel(), target)
			}
		}
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			target, ours := strings.CutPrefix(imported, module+"/")
			if !ours || under(target, room.path) {
				continue
			}
			if !slices.ContainsFunc(room.may, func(allowed string) bool { return under(target, allowed) }) {
				t.Errorf("%s imports %s; %s may import only itself and %s",
					p.rel(), target, room.path, strings.Join(room.may, ", "))
			}
		}
	}
	if !seen["internal/fault"] {
		t.Error("internal/fault was not looked at: the test sees the wrong tree")
	}
}

func TestLeavesImportNoFloor(t *testing.T) {
	for _, r := range rooms {
		if !slices.Contains(leaves, r.path) {
			continue
		}
		for _, allowed := range r.may {
			if !slices.Contains(leaves, allowed) && !slices.Contains(contracts, allowed) {
				t.Errorf("leaf %s may import %s, which is neither leaf nor contract", r.path, allowed)
			}
		}
	}
}

func TestEveryPackageHasOnePackageComment(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 {
			continue
		}
		generated := true
		var with []string
		for _, f := range files(t, p) {
			if f.test {
				continue
			}
			generated = generated && f.generated
			if f.syntax.Doc != nil && !f.generated {
				with = append(with, f.path)
				checkPackageComment(t, f)
			}
		}
		switch {
		case generated: // its comment is in the contract that it was made from
		case len(with) == 0:
			t.Errorf("%s has no package comment: say what it is for and what it must not know", p.rel())
		case len(with) > 1:
			t.Errorf("%s has %d package comments: %s", p.rel(), len(with), strings.Join(with, ", "))
		}
	}
}

func checkPackageComment(t *testing.T, f sourceFile) {
	t.Helper()
	want := "Package " + f.syntax.Name.Name + " "
	if f.syntax.Name.Name == "main" {
		want = "Command "
	}
	if !strings.HasPrefix(f.syntax.Doc.Text(), want) {
		t.Errorf("%s: the package comment must begin with %q", f.path, want)
	}
}

func TestFilesStayShort(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range files(t, p) {
			if lines := bytes.Count(f.text, []byte("\n")); lines > maxLines && !f.generated {
				t.Errorf("%s has %d lines, more than %d: split it by operation", f.path, lines, maxLines)
			}
		}
	}
}

// Handlers and clients return errors of internal/fault; only there are they turned into
// what a protocol wants. Tests may play a foreign server.
func TestErrorsAreMappedInOnePlace(t *testing.T) {
	forbidden := map[string]string{
		"connectrpc.com/connect": "NewError",
		"net/http":               "Error",
	}
	for _, p := range packages(t) {
		if under(p.rel(), "internal/fault") {
			continue
		}
		for _, f := range files(t, p) {
			if f.generated || f.test {
				continue
			}
			for path, function := range forbidden {
				name := importedAs(f.syntax, path)
				ast.Inspect(f.syntax, func(n ast.Node) bool {
					if sel, ok := n.(*ast.SelectorExpr); ok && name != "" && isName(sel.X, name) && sel.Sel.Name == function {
						t.Errorf("%s calls %s.%s; make the error with internal/fault", f.path, name, function)
					}
					return true
				})
			}
		}
	}
}

// The host agent reaps orphans, and can tell them from its own children only when all of
// these are started in one place.
func TestHostStartsProgramsInOnePlace(t *testing.T) {
	waits := []string{"Run", "Start", "Output", "CombinedOutput"}
	for _, p := range packages(t) {
		if !under(p.rel(), "internal/host") || under(p.rel(), "internal/host/child") {
			continue
		}
		for _, f := range files(t, p) {
			if f.test || importedAs(f.syntax, "os/exec") == "" {
				continue
			}
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok && isName(sel.X, "cmd") && slices.Contains(waits, sel.Sel.Name) {
					t.Errorf("%s calls cmd.%s; start programs with internal/host/child", f.path, sel.Sel.Name)
				}
				return true
			})
		}
	}
}

// importedAs is the name under which a file knows an imported package; "" when it does not.
func importedAs(f *ast.File, path string) string {
	for _, spec := range f.Imports {
		if strings.Trim(spec.Path.Value, `"`) != path {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return path[strings.LastIndex(path, "/")+1:]
	}
	return ""
}

func isName(x ast.Expr, name string) bool {
	ident, ok := x.(*ast.Ident)
	return ok && ident.Name == name
}
