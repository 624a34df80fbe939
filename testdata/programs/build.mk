# A build of many small C files, to be caught in flight: make -j4 -f build.mk
IDS := $(shell seq 1 24)
prog: main.c $(IDS:%=unit%.o)
	gcc -O1 -o $@ $^ && ./$@ && echo PASS > verdict.tmp && mv verdict.tmp verdict
unit%.o: unit%.c
	gcc -O2 -c -o $@ $<
unit%.c:
	for j in $$(seq 1 200); do \
		echo "int u$*_$$j(int x) { int s = 0; for (int i = 0; i < x; i++) s += i * $$j; return s; }"; \
	done > $@.tmp && echo "int unit$*(void) { return $*; }" >> $@.tmp && mv $@.tmp $@
main.c:
	{ for i in $(IDS); do echo "int unit$$i(void);"; done; echo "int main(void) { int s = 0;"; \
	  for i in $(IDS); do echo "s += unit$$i();"; done; echo "return s != 300; }"; } > $@
