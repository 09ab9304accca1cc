package arch

import (
	"bytes"
	"go/ast"
	"go/printer"
	"go/token"
	"slices"
	"testing"
)

// serverTimes are the fields that every server of ours sets, each by a constant of its
// package, and what that is.
var serverTimes = map[string]struct{ constant, is string }{
	"ReadHeaderTimeout": {"readHeaderTimeout", "10 * time.Second"},
	"IdleTimeout":       {"idleTimeout", "620 * time.Second"},
}

// plainServers are the functions that start a server which has no times.
var plainServers = []string{"ListenAndServe", "ListenAndServeTLS", "Serve", "ServeTLS"}

// Who sends a header slowly, or nothing, does not hold a connection for ever; and it is
// never we who close one that a load balancer is about to use. So on every server.
func TestServersHaveTheirTimes(t *testing.T) {
	found := 0
	for _, p := range packages(t) {
		if !under(p.rel(), "cmd") && !under(p.rel(), "internal") {
			continue
		}
		all := files(t, p)
		for _, f := range all {
			name := importedAs(f.syntax, "net/http")
			if f.test || name == "" {
				continue
			}
			isServer := func(x ast.Expr) bool {
				sel, ok := x.(*ast.SelectorExpr)
				return ok && isName(sel.X, name) && sel.Sel.Name == "Server"
			}
			// Pointers to servers are all that may be named beside the literals.
			fine := map[ast.Expr]bool{}
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.StarExpr:
					fine[n.X] = true
				case *ast.CompositeLit:
					if isServer(n.Type) {
						found++
						fine[n.Type] = true
						checkServer(t, f.path, n, all)
					}
				case *ast.SelectorExpr:
					if isServer(n) && !fine[n] {
						t.Errorf("%s has a server without times; make it as &http.Server{…}", f.path)
					}
					if isName(n.X, name) && slices.Contains(plainServers, n.Sel.Name) {
						t.Errorf("%s calls %s.%s, whose server has no times", f.path, name, n.Sel.Name)
					}
				}
				return true
			})
		}
	}
	// Those of the two programs.
	if found < 2 {
		t.Errorf("%d servers were found", found)
	}
}

// checkServer looks at the times of a literal, and at the constants of its package.
func checkServer(t *testing.T, path string, server *ast.CompositeLit, all []sourceFile) {
	t.Helper()
	for field, want := range serverTimes {
		set := slices.ContainsFunc(server.Elts, func(x ast.Expr) bool {
			pair, ok := x.(*ast.KeyValueExpr)
			return ok && isName(pair.Key, field) && isName(pair.Value, want.constant)
		})
		if !set {
			t.Errorf("%s has a server whose %s is not %s", path, field, want.constant)
		}
		if got := constantOf(t, all, want.constant); got != want.is {
			t.Errorf("%s: %s is %q, want %s", path, want.constant, got, want.is)
		}
	}
}

// constantOf is the text of a constant of a package; "" when there is none.
func constantOf(t *testing.T, all []sourceFile, name string) string {
	t.Helper()
	for _, f := range all {
		for _, d := range f.syntax.Decls {
			group, ok := d.(*ast.GenDecl)
			if !ok || group.Tok != token.CONST {
				continue
			}
			for _, s := range group.Specs {
				spec := s.(*ast.ValueSpec)
				i := slices.IndexFunc(spec.Names, func(n *ast.Ident) bool { return n.Name == name })
				if i < 0 || i >= len(spec.Values) {
					continue
				}
				var text bytes.Buffer
				if err := printer.Fprint(&text, token.NewFileSet(), spec.Values[i]); err != nil {
					t.Fatal(err)
				}
				return text.String()
			}
		}
	}
	return ""
}
