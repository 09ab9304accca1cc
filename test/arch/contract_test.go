package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// contract is the page that names the test of each sentence that the SDKs rely on.
const contract = "docs/guest-contract.md"

var (
	legendLine  = regexp.MustCompile(`(?m)^\| ([a-z, ]+) \| ([a-z/, ]+) \|$`)
	goTest      = regexp.MustCompile("`([a-z]+)\\.((?:Test|Fuzz)\\w+)`")
	sdkTest     = regexp.MustCompile("`(\\w+\\.test\\.mjs) › ([^`]+)`")
	testFunc    = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	sdkTestCall = regexp.MustCompile(`(?m)^test\('([^']+)'`)
)

// The page would be worth nothing if what it names were not there.
func TestTheContractNamesTestsThatAre(t *testing.T) {
	top := filepath.Join("..", "..")
	page, err := os.ReadFile(filepath.Join(top, contract))
	if err != nil {
		t.Fatal(err)
	}
	dirs := map[string]string{}
	for _, line := range legendLine.FindAllStringSubmatch(string(page), -1) {
		names, paths := strings.Split(line[1], ", "), strings.Split(line[2], ", ")
		if len(names) != len(paths) {
			continue // the head of a table
		}
		for i, name := range names {
			dirs[name] = paths[i]
		}
	}
	there := map[string]map[string]bool{}
	named := goTest.FindAllStringSubmatch(string(page), -1)
	for _, one := range named {
		dir, known := dirs[one[1]]
		if !known {
			t.Errorf("%s names %s.%s, and no package of that name", contract, one[1], one[2])
			continue
		}
		if there[dir] == nil {
			there[dir] = found(t, filepath.Join(top, dir, "*_test.go"), testFunc)
		}
		if !there[dir][one[2]] {
			t.Errorf("%s names %s, which is not in %s", contract, one[2], dir)
		}
	}
	inSDK := sdkTest.FindAllStringSubmatch(string(page), -1)
	for _, one := range inSDK {
		file := filepath.Join(top, "test", "sdk", one[1])
		if there[file] == nil {
			there[file] = found(t, file, sdkTestCall)
		}
		if !there[file][one[2]] {
			t.Errorf("%s names %q, which is not in %s", contract, one[2], one[1])
		}
	}
	if len(named) < 100 || len(inSDK) < 30 {
		t.Errorf("%s names %d tests in Go and %d of the SDK: it is not read as it is written", contract, len(named), len(inSDK))
	}
}

// found returns what pattern finds in the files that glob names.
func found(t *testing.T, glob string, pattern *regexp.Regexp) map[string]bool {
	t.Helper()
	paths, err := filepath.Glob(glob)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range pattern.FindAllStringSubmatch(string(text), -1) {
			all[match[1]] = true
		}
	}
	return all
}
