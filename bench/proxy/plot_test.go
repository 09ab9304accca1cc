package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/bench/report"
)

func TestThePlotIsAPicture(t *testing.T) {
	picture := plot([]curve{
		{"no <load>", report.Times{3 * time.Millisecond, 2 * time.Millisecond}},
		{"one", report.Times{time.Second}},
	})
	paths := 0
	for dec := xml.NewDecoder(bytes.NewReader(picture)); ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "path" {
			paths++
		}
	}
	const want = 2
	if paths != want {
		t.Errorf("%d curves are drawn, want %d", paths, want)
	}
}
