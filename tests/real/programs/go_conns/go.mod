module go_conns

go 1.17
