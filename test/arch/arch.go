// Package arch holds the rules about the shape of the code that a compiler does not know:
// which package may import which, how a package introduces itself, how long a file may
// be, where errors are mapped. The rules are its tests; there is nothing to import here.
package arch
