"""Networks for partial differential equations, trained with Adam and with TB_Sigmoid on whole matrices or windows."""
