"""Networks for partial differential equations, trained with Adam and with TB_Sigmoid.

TB_Sigmoid measures whole matrices or windows.
"""
