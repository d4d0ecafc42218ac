package Report;
sub count { my ($file) = @_; my @lines = <$file>; scalar @lines }
1;
