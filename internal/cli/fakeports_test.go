package cli

import (
	"fmt"
	"net/http"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
)

// fakePortList answers with two ports, the name of whose process is a nuisance.
func fakePortList(w http.ResponseWriter, r *http.Request) error {
	at := func(port int) string { return fmt.Sprintf("http://%d-%s.localhost/", port, r.PathValue("id")) }
	return answer(w, http.StatusOK, api.PortList{Ports: []api.Port{
		{Port: 80, Addresses: []string{"0.0.0.0", "::"}, URL: at(80), Processes: []api.PortProcess{{Pid: 7, Name: "ng\x1binx"}, {Pid: 8, Name: "nginx"}}},
		{Port: 3000, Addresses: []string{"127.0.0.1"}, URL: at(3000), Processes: []api.PortProcess{}},
	}})
}

func fakePortLink(w http.ResponseWriter, r *http.Request) error {
	return answer(w, http.StatusCreated, api.PortLink{
		URL:       fmt.Sprintf("http://%s-%s.localhost/", r.PathValue("port"), r.PathValue("id")),
		ExpiresAt: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC),
	})
}
