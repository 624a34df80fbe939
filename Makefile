# cryo: checkpoint/restore for Linux.
#
#   make          build bin/criu and bin/crit
#   make demo     dump and restore a real program, and show it
#   make test     all tests, as root; says what is missing on this machine and how to get it
#   make bench    compare with the machine's own limits, and with criu where CRIU_PEER names one
#   make fuzz     fuzz every parser of untrusted bytes, FUZZTIME each
#   make lint     gofmt, go vet, staticcheck, cross-build
#   make install  to $(DESTDIR)$(PREFIX)/sbin and /bin; make uninstall takes it away

GO       ?= go
PREFIX   ?= /usr/local
DESTDIR  ?=
FUZZTIME ?= 20s
TESTTIME ?= 30m
TESTFLAGS ?=
GITID    ?=

export CGO_ENABLED = 0

LDFLAGS = -s -w $(if $(GITID),-X main.gitID=$(GITID))
BUILD   = $(GO) build -trimpath -ldflags "$(LDFLAGS)"

.PHONY: all build install uninstall demo test bench fuzz lint clean
all: build

# The Go build cache knows what is up to date.
build:
	$(BUILD) -o build/linked/ ./cmd/...
	@mkdir -p bin
	@for c in build/linked/*; do cmp -s $$c bin/$${c##*/} || $(call put,$$c,bin/$${c##*/}) || exit 1; done

# put SOURCE,TARGET: a copy that is written in one piece. Go's linker writes page by page, and until the page cache has
# forgotten them the kernel maps such pages one by one too: a program so written takes a millisecond longer to start.
put = { dd if=$(1) of=$(2).new bs=64M status=none && chmod 755 $(2).new && mv -f $(2).new $(2); }

install: build
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/bin
	$(call put,bin/criu,$(DESTDIR)$(PREFIX)/sbin/criu)
	for c in bin/*; do case $$c in bin/criu) ;; *) $(call put,$$c,$(DESTDIR)$(PREFIX)/bin/$${c##*/}) || exit 1 ;; esac; done

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/criu $(patsubst cmd/%,$(DESTDIR)$(PREFIX)/bin/%,$(filter-out cmd/criu,$(wildcard cmd/*)))

demo: build
	./testdata/demo.sh bin/criu

# One package at a time: tests that bring back process ids must not compete for them.
test: build
	./testdata/needs.sh
	CRYO_BIN=$(CURDIR)/bin GO=$(GO) $(GO) run ./testdata/runtests build/test.log -p 1 -timeout $(TESTTIME) $(TESTFLAGS) ./...

bench: build
	CRYO_BIN=$(CURDIR)/bin CRYO_BENCH=1 $(GO) test -run Speed -bench . -timeout $(TESTTIME) -v ./internal/e2e

fuzz:
	@for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; \
	done

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	GOARCH=arm64 $(GO) vet ./...
	@if command -v staticcheck >/dev/null; then staticcheck ./...; else \
	  echo "staticcheck is missing: go install honnef.co/go/tools/cmd/staticcheck@latest"; fi

clean:
	rm -rf bin build
