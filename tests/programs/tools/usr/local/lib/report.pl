use strict;
use warnings;
use lib '/usr/local/lib/perl-modules';
use Report;

my $settings = do '/usr/local/lib/perl-modules/settings.pl' or die;
open(my $names, '<', $ARGV[0]) or die;
print Report::count($names) . " $settings->{unit}\n";
