# Perl: a hash under change, an alarm handler, a forked child with a pipe, sockets none.
use strict; use warnings; use IO::Handle;
sub put { my ($n, $t) = @_; open(my $f, '>', "$n.tmp") or die; print $f $t; close $f; rename "$n.tmp", $n or die }
my $ticks = 0; my %h; my $n = 0;
$SIG{ALRM} = sub { $ticks++; };
pipe(my $r, my $w) or die;
my $pid = fork();
if (!$pid) { close $w; while (my $l = <$r>) { exit 7 if $l eq "quit\n" } exit 1 }
close $r; $w->autoflush(1);
print $w "one\n";
while (!-e 'go') { $h{$n} = $n * $n; $n++; put('ready', $$) if $n == 3000; select(undef, undef, undef, 0.001) if $n > 3000; }
alarm 1; select(undef, undef, undef, 5) until $ticks;
print $w "quit\n"; waitpid($pid, 0);
my $bad = grep { $h{$_} != $_ * $_ } keys %h;
my $ok = !$bad && keys(%h) == $n && $? >> 8 == 7;
put('verdict', $ok ? "PASS\n" : "FAIL: bad $bad, status $?\n");
exit !$ok;
