package webproxy

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/relay"
)

// atHand makes benches pass requests on as a control floor in this process does.
var atHand bool

// near is a small control floor with a proxy at hand.
func near(p *Proxy) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect || relay.UpgradeProtocol(r) != "" {
			p.ServeHTTP(w, r)
			return
		}
		out := relay.Outgoing(r)
		out.URL = &url.URL{Scheme: "http", Host: "host", Opaque: r.RequestURI}
		if !strings.HasPrefix(r.RequestURI, "/") {
			out.URL.Opaque = r.URL.RequestURI()
		}
		if err := relay.Forward(w, out, p, func(*http.Response) error { return nil }); err != nil {
			w.WriteHeader(http.StatusTeapot) // nobody expects it
		}
	})
}

// What holds for requests that come by the socket holds without one.
func TestWithoutASocket(t *testing.T) {
	atHand = true
	t.Cleanup(func() { atHand = false })
	for name, test := range map[string]func(*testing.T){
		"RequestsArriveAsTheyWereSent":    TestRequestsArriveAsTheyWereSent,
		"HeadersOfOneConnectionDoNotPass": TestHeadersOfOneConnectionDoNotPass,
		"PortsThatTheGuestHasToLookFor":   TestPortsThatTheGuestHasToLookFor,
		"PortsThatAreClosed":              TestPortsThatAreClosed,
		"SandboxesThatCannotBeAsked":      TestSandboxesThatCannotBeAsked,
		"RequestsReachNothingElse":        TestRequestsReachNothingElse,
		"TheDaemonsControlPaths":          TestTheDaemonsControlPaths,
		"LimitOnConnections":              TestLimitOnConnections,
		"GuestsThatAnswerNonsense":        TestGuestsThatAnswerNonsense,
		"HeadersWithoutEnd":               TestHeadersWithoutEnd,
		"Smuggling":                       TestSmuggling,
		"AddressesThatHaveChangedHands":   TestAddressesThatHaveChangedHands,
		"Navigation":                      TestNavigation,
		"EventsAreFlushedAtOnce":          TestEventsAreFlushedAtOnce,
		"BodiesFlowBothWaysAtOnce":        TestBodiesFlowBothWaysAtOnce,
		"HeadRangeAndNotModified":         TestHeadRangeAndNotModified,
		"TrailersPassBothWays":            TestTrailersPassBothWays,
		"EarlyHintsPass":                  TestEarlyHintsPass,
		"AnswersWithoutALength":           TestAnswersWithoutALength,
		"BrokenAnswersLookBroken":         TestBrokenAnswersLookBroken,
		"ConnectionsEndWithTheirSandbox":  TestConnectionsEndWithTheirSandbox,
		"RequestsEndWithTheirClient":      TestRequestsEndWithTheirClient,
	} {
		t.Run(name, test)
	}
}
